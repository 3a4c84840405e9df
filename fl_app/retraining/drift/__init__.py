# SPDX-License-Identifier: Apache-2.0
"""Data drift: summaries of nodes' data in, evidence and alarms out."""
