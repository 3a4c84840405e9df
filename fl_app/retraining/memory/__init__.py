# SPDX-License-Identifier: Apache-2.0
"""The monitor's memory in SQL: requests, schedules, idempotency keys and notes."""
