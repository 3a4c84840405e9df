# SPDX-License-Identifier: Apache-2.0
"""The journal: entries, leases, and who may write."""
