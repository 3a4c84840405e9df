# SPDX-License-Identifier: Apache-2.0
"""Probation of a new production version, and the way back."""
