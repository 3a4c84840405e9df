# SPDX-License-Identifier: Apache-2.0
"""The first model of a session: its arrays, and whether nodes send all of them; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fl_app.strategy.errors import RunFailedError
from fl_app.strategy.round.aggregate import Aggregate
from fl_app.strategy.round.replies import SILENT, ScreenedReplies
from fl_app.wire.schema import Schema, array_rows, schema_of


def agreed_schema(models: Iterable[ArrayRecord]) -> Schema:
    """Return the schema of more than half of the models; empty if there is none."""
    votes: dict[object, list[Schema]] = defaultdict(list)
    for model in models:
        schema = schema_of(model)
        votes[frozenset(array_rows(schema))].append(schema)
    most = max(votes.values(), key=len, default=[])
    return most[0] if 2 * len(most) > sum(map(len, votes.values())) else {}


def adopted_schema(made: ArrayRecord, agreed: Schema) -> Schema:
    """Return the schema of a first aggregate, with the dtypes of the replies that it was made of.

    An average of integers is made of floats, and they are integers all the same.
    """
    own = schema_of(made)
    same_shape = {
        name: (agreed[name][0], shape)
        for name, (_, shape) in own.items()
        if name in agreed and agreed[name][1] == shape
    }
    return {**own, **same_shape}


def require_whole_model(
    strategy: Strategy, server_round: int, screened: ScreenedReplies, made: Aggregate
) -> None:
    """Require that nodes and strategy make models of the arrays that the session starts with.

    Raises
    ------
    RunFailedError
        If all replies, or what was made of them, have the same other arrays.
    """
    if reason := _common_difference(screened):
        raise RunFailedError(
            f"All replies of round {server_round} were rejected for the same reason: {reason}; "
            "have the ClientApp return each array of the global model and no other, or give "
            "start() the initial_arrays that it returns (an empty ArrayRecord takes its arrays)."
        )
    if made.other_arrays:
        raise RunFailedError(
            f"{type(strategy).__name__} made another model in round {server_round} than it began "
            f"with: {made.problem}; give start() initial_arrays with all arrays that a model has "
            "(an empty ArrayRecord takes those of the first one)."
        )


def _common_difference(screened: ScreenedReplies) -> str:
    """Return how the arrays of all replies differ from the model's, if all differ the same way."""
    errors = {str(m.metadata.src_node_id) for m in screened.replies if m.has_error()}
    why = {
        node: reason
        for node, reason in screened.rejected.items()
        if node not in errors and reason != SILENT
    }
    alike = len(set(why.values())) == 1 and why.keys() <= screened.other_arrays
    return next(iter(why.values())) if alike and not screened.good else ""
