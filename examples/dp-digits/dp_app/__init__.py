# SPDX-License-Identifier: Apache-2.0
"""Federated softmax regression on scikit-learn's digits with differential privacy for the nodes."""
