# SPDX-License-Identifier: Apache-2.0
"""The errors that end a run, or a session of it."""

from __future__ import annotations


class MetricError(ValueError):
    """The metric that the gates look at was not reported."""


class CheckpointError(RuntimeError):
    """A round's arrays could not be written to disk; the text says where, and why."""


class ResumeError(RuntimeError):
    """There is no session to resume, or it cannot be resumed exactly; the text says why."""


class RunFailedError(RuntimeError):
    """Too many rounds in a row gave no model, or none can."""


class SessionOverError(RuntimeError):
    """The session has ended, and its remaining rounds are left to the next one."""


class TooFewNodesError(RunFailedError):
    """There were fewer nodes than the strategy needs, until the deadline."""
