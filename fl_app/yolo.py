# SPDX-License-Identifier: AGPL-3.0-or-later
"""The shipped model on the server: first weights, holdout scores, the picture of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, MetricRecord

from fl_app.client.data import DataSpec
from fl_app.config import ServerConfig
from fl_app.strategy import SessionReport

if TYPE_CHECKING:
    from models.holdout import Holdout
    from models.model import YoloModel


class YoloOnServer:
    """YOLOv8 with its data set; Ultralytics is imported when first used.

    Parameters
    ----------
    config : ServerConfig
        Size, classes, picture side and seed of the model.
    spec : DataSpec
        The data set, whose ``val`` split is the holdout.
    """

    def __init__(self, config: ServerConfig, spec: DataSpec) -> None:
        self.data = spec
        self.seed = config.seed
        self.image_size = config.image_size
        self.batch_size = config.batch_size
        self.spec = {
            "family": "yolov8",
            "size": config.model_size,
            "num_classes": config.num_classes,
            "names": list(spec.names),
            "image_size": config.image_size,
        }
        self._model: YoloModel | None = None
        self._holdout: Holdout | None = None

    @property
    def model(self) -> YoloModel:
        """The module that arrays are loaded into; built when first used."""
        if self._model is None:
            import torch

            from models.model import get_model

            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self._model = get_model(
                    str(self.spec["size"]), len(self.data.names), names=self.data.names
                )
        return self._model

    def first_arrays(self) -> ArrayRecord:
        """Seeded first weights."""
        from models.model import to_arrays

        return ArrayRecord({name: Array(values) for name, values in to_arrays(self.model).items()})

    def require_same_model(self, version: str, arrays: ArrayRecord) -> None:
        """Refuse to start from a version of another model; the message names what differs."""
        from models.model import from_arrays

        try:
            from_arrays(self.model, {name: array.numpy() for name, array in arrays.items()})
        except ValueError as err:
            raise ValueError(
                f"Version {version} does not fit the model of this run ({err}); "
                "set model-size and num-classes to that version's, or restart-from to 'scratch'."
            ) from None

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Score arrays on the server's holdout, the ``val`` split of the data set."""
        from models.holdout import Holdout
        from models.model import from_arrays

        if self._holdout is None:
            self._holdout = Holdout(
                self.data, image_size=self.image_size, batch_size=self.batch_size
            )
        from_arrays(self.model, {name: array.numpy() for name, array in arrays.items()})
        return MetricRecord(dict(self._holdout(self.model)))

    def picture(self, report: SessionReport, folder: Path) -> Iterable[Path]:
        """Draw what the best version sees on the holdout."""
        from models.holdout import draw_predictions
        from models.model import from_arrays
        from models.weights import load_weights

        if report.weights is None:
            return []
        from_arrays(self.model, load_weights(report.weights))
        path = folder / "predictions.png"
        draw_predictions(self.model, self.data, path)
        return [path]
