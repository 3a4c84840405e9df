# SPDX-License-Identifier: Apache-2.0
"""The registry on MLflow; nothing else imports MLflow."""
