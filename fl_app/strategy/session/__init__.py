# SPDX-License-Identifier: Apache-2.0
"""One call of `start()`: begun or resumed, kept on disk, handed to the worker, ended."""
