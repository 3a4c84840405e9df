# SPDX-License-Identifier: Apache-2.0
"""What the worker does with a closed round: evaluate, decide, register, stage, report."""
