# SPDX-License-Identifier: Apache-2.0
"""Client mods that any Flower app can use: compression, packing, data summaries."""
