# SPDX-License-Identifier: Apache-2.0
"""The forms of those who are signed in: what each holds, and what sending it does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from fl_app.api.endpoint import Context
from fl_app.api.parsing import Body, Text, Version
from fl_registry.redaction import printable

Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    AfterValidator(printable),
]


class SignedForm(Body):
    """A form of somebody with a name; ``send`` does what it requests and returns a sentence."""

    by: Annotated[Line, Field(max_length=100)]


class TriggerForm(SignedForm):
    """A request for retraining."""

    reason: Line

    def send(self, context: Context, new_id: str) -> str:
        """Request it."""
        reason = f"{self.reason} (requested by {self.by})"
        pending = context.manager.manual_trigger(reason, request_id=new_id)
        joined = " It joins the pending request." if pending != new_id else ""
        return f"Retraining is requested.{joined}"


class DecisionForm(SignedForm):
    """Whether a version goes to Production."""

    # One form with a choice: Enter in the note would press the first of two buttons.

    version: Version
    decision: Literal["approve", "reject"]
    note: Text = ""

    def send(self, context: Context, _: str) -> str:
        """Move the version."""
        with context.registry() as store:
            if self.decision == "approve":
                store.approve_version(self.version, actor=self.by, reason=self.note)
                return f"Version {self.version} is approved and in Production now."
            store.reject_version(self.version, actor=self.by, reason=self.note)
            return f"Version {self.version} is rejected and archived."


class MoveForm(SignedForm):
    """Where a version goes, by what the store does."""

    version: Version
    move: Literal["approve", "reject", "promote", "stage", "restore", "rollback", "archive"]
    note: Text = ""

    def send(self, context: Context, _: str) -> str:
        """Move the version."""
        with context.registry() as store:
            moves = {
                "approve": (store.approve_version, "approved and in Production now"),
                "reject": (store.reject_version, "rejected and archived"),
                "promote": (store.promote_to_production, "in Production now"),
                "stage": (store.promote_to_staging, "in Staging now"),
                "restore": (store.restore_version, "back in Staging"),
                "rollback": (store.promote_to_production, "back in Production"),
                "archive": (store.archive_version, "archived"),
            }
            move, done = moves[self.move]
            move(self.version, actor=self.by, reason=self.note)
        return f"Version {self.version} is {done}."


class RollbackForm(SignedForm):
    """Which version comes back."""

    version: Version
    confirmed: Literal["yes"]
    note: Text = ""

    def send(self, context: Context, _: str) -> str:
        """Bring it back."""
        with context.registry() as store:
            store.rollback(self.version, actor=self.by, reason=self.note)
        return f"Version {self.version} is back in Production."


SignedForms = type[TriggerForm] | type[DecisionForm] | type[RollbackForm] | type[MoveForm]
FORMS: dict[str, SignedForms] = {
    "/page/trigger": TriggerForm,
    "/page/decide": DecisionForm,
    "/page/rollback": RollbackForm,
    "/page/move": MoveForm,
}
"""The forms of those who are signed in, by path."""
HINTS = {
    "by": "Write your name in at most 100 characters; the ledger records it.",
    "reason": "Write why it should be trained again, in at most 500 characters.",
    "note": "Write a note of at most 500 characters.",
    "version": "That is not a version; versions are numbers such as 3.",
    "decision": "Choose to approve or to reject.",
    "move": "Choose what to do with the version.",
    "confirmed": "Tick the box to roll back.",
}
