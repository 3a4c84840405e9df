# SPDX-License-Identifier: Apache-2.0
"""What a node's data summary counts: pictures, boxes, rows, against a reference."""
