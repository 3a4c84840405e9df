# SPDX-License-Identifier: Apache-2.0
"""Files of versions: weights, checks, copies, written whole or not at all."""
