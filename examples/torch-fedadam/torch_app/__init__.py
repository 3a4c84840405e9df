# SPDX-License-Identifier: Apache-2.0
"""A federated convolutional network in PyTorch on scikit-learn's digits."""
