# SPDX-License-Identifier: Apache-2.0
"""The files of a session: its record, its rounds, and the state of the inner strategy."""
