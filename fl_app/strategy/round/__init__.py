# SPDX-License-Identifier: Apache-2.0
"""One training round on Flower's thread: replies in, a checked aggregate out."""
