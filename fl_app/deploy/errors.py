# SPDX-License-Identifier: Apache-2.0
"""What a deployment says when it cannot start."""

from __future__ import annotations

from registry.redaction import redact


class DeploymentError(RuntimeError):
    """A deployment cannot start or go on; the text is one line that says what to do."""

    def __init__(self, said: str) -> None:
        super().__init__(redact(said))
