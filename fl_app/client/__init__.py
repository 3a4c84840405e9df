# SPDX-License-Identifier: Apache-2.0
"""The client side: a node's data, its local round with YOLO, and the ClientApp."""
