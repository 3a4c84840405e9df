# SPDX-License-Identifier: Apache-2.0
"""One call of `start()`: a session is started or resumed, run, and ended."""
