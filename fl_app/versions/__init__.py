# SPDX-License-Identifier: Apache-2.0
"""What people read of a version: its tags, the words for it and its model card. No Flower."""
