# SPDX-License-Identifier: Apache-2.0
"""The formats of messages, read by server and clients."""
