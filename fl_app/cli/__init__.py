# SPDX-License-Identifier: Apache-2.0
"""The `fl-app` command."""
