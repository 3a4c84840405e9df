# SPDX-License-Identifier: Apache-2.0
"""Federated logistic regression on the tables of two clinics."""
