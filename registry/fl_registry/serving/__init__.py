# SPDX-License-Identifier: Apache-2.0
"""How a version is served by MLflow: its MLmodel file and the code stored with it."""
