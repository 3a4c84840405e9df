# SPDX-License-Identifier: AGPL-3.0-or-later
"""The shipped model on the server: first weights, holdout scores, the picture of predictions."""
# ruff: noqa: E402  (what is not installed is named before it is imported)

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fl_registry.errors import require

require("The shipped model", "torch", "ultralytics")

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fl_app.client.data import data_digest
from fl_app.config import ConfigError, ServerConfig
from fl_app.strategy import DataUsed, ScoredRecord, SessionReport
from fl_models import serving
from fl_models.holdout import Holdout, draw_predictions
from fl_models.pictures import DataSpec
from fl_models.yolo import ModelMismatchError, YoloModel, from_arrays, get_model
from fl_registry import Serving
from fl_registry.files.weights import load_weights


class YoloOnServer:
    """A detector of Ultralytics with its data set. One thread at a time may use it.

    Parameters
    ----------
    config : ServerConfig
        Name, classes, picture side and seed of the model.
    data : DataSpec
        The data set, whose ``val`` split is the holdout.

    Raises
    ------
    ConfigError
        If there is no such model, or it can't take pictures of this size.
    """

    def __init__(self, config: ServerConfig, data: DataSpec) -> None:
        self.data = data
        self._metric = config.metric
        self._model = _new_model(config, data.names)
        self.serving = Serving(Path(serving.__file__), **serving.SERVING)
        self.holdout = DataUsed(f"{data.root.name}/val", data_digest(data.val), str(data.root))
        self._scores = Holdout(
            data,
            image_size=config.image_size,
            batch_size=config.batch_size,
            device="cuda:0" if torch.cuda.is_available() else "cpu",
        )

    @property
    def description(self) -> dict[str, object]:
        """The model, as the registry keeps it with each version."""
        return dict(self._model.description)

    @property
    def orders(self) -> ConfigRecord:
        """What nodes build the model from, for the config of each message to them."""
        return ConfigRecord({"model": json.dumps(self.description)})

    def first_arrays(self) -> ArrayRecord:
        """First weights, which depend on the seed only; call it before others are loaded."""
        return ArrayRecord(self._model.state_dict())

    def require_same_model(self, version: str, arrays: ArrayRecord) -> None:
        """Check that a session can start from a version.

        Raises
        ------
        ConfigError
            If it is of another model; names the difference.
        """
        try:
            self._load(arrays)
        except ModelMismatchError as err:
            raise ConfigError(
                f"Version {version} does not fit the model of this run ({err}); "
                "set model and num-classes to that version's, or restart-from to 'scratch'."
            ) from None

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Score arrays on the holdout: mAP50, mAP50-95, precision and recall, from 0 to 1.

        The metric that gates look at is also returned by class, as ``mAP50/fish``, and the matches
        of each picture are returned for paired tests.
        """
        self._load(arrays)
        scores = self._scores(self._model)
        by_class = self._scores.per_class(self._metric)
        classes = {f"{self._metric}/{name}": score for name, score in by_class.items()}
        return ScoredRecord({**scores, **classes}, self._scores.matches)

    def picture(self, report: SessionReport, folder: Path) -> Iterable[Path]:
        """Draw predictions of the session's best version on the holdout to ``predictions.png``."""
        if report.weights is None:
            return []
        from_arrays(self._model, load_weights(report.weights))
        path = folder / "predictions.png"
        draw_predictions(self._model, self.data, path)
        return [path]

    def _load(self, arrays: ArrayRecord) -> None:
        from_arrays(self._model, {name: array.numpy() for name, array in arrays.items()})


def _new_model(config: ServerConfig, names: Sequence[str]) -> YoloModel:
    name, side = config.model, config.image_size
    if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute():
        raise ConfigError(
            f"model={name!r} is a relative path, which Flower's processes would look for in "
            "another folder; give the absolute path of the model's file."
        )
    try:
        model = get_model(name, config.num_classes, names=names, seed=config.seed, image_size=side)
    except ValueError as error:
        raise ConfigError(f"Run-config key 'model': {error}.") from None
    stride = int(model.stride.max())
    if side % stride:
        raise ConfigError(
            f"image-size={side} is no multiple of {stride}, the largest stride of {name}; set it "
            f"to {-(-side // stride) * stride}."
        )
    return model
