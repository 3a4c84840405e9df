# SPDX-License-Identifier: Apache-2.0
"""Bytes that a fuzzer makes, and what must hold whatever they are."""
