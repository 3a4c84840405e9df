# SPDX-License-Identifier: Apache-2.0
"""FedAvg that sends clients the learning rate of the round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fl_app.strategy.round.averaging import StreamingFedAvg

LEARNING_RATE = "learning-rate"


class ScheduledFedAvg(StreamingFedAvg):
    """StreamingFedAvg whose train messages carry ``learning-rate``.

    A client starts each round with a new optimizer and does not have the number of rounds so far.

    Parameters
    ----------
    learning_rate_of : Callable[[int], float]
        Learning rate of a server round, which counts from 1.
    **kwargs
        Parameters of Flower's FedAvg.
    """

    def __init__(self, learning_rate_of: Callable[[int], float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.learning_rate_of = learning_rate_of

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of training, with its learning rate."""
        config[LEARNING_RATE] = self.learning_rate_of(server_round)
        return super().configure_train(server_round, arrays, config, grid)
