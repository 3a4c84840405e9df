# SPDX-License-Identifier: Apache-2.0
"""Federated logistic regression on scikit-learn's digits."""
