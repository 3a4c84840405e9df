# SPDX-License-Identifier: Apache-2.0
"""The monitor's memory in SQL: requests, state, schedules, and the lock of who serves."""
