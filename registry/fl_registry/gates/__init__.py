# SPDX-License-Identifier: Apache-2.0
"""Gates, and the statistics they rest on. Pure."""
