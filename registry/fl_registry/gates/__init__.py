# SPDX-License-Identifier: Apache-2.0
"""Gates and their statistics: pure functions of evidence."""
