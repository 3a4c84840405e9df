# SPDX-License-Identifier: AGPL-3.0-or-later
"""The shipped model on the server: first weights, holdout scores, pictures of a session."""
# ruff: noqa: E402  (what is not installed is named before it is imported)

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_registry.errors import require

require("The shipped model", "torch", "ultralytics")

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fl_app.client import generated_shapes
from fl_app.client.data import data_digest
from fl_app.client.train_args import read_train_args
from fl_app.config import ConfigError, ServerConfig
from fl_app.devices import chosen_device, device_memory
from fl_app.starting_weights import StartingWeights
from fl_app.strategy import DataUsed, ScoredRecord, SessionReport
from fl_app.strategy.records import Artifacts
from fl_models import serving
from fl_models.classes import class_names, name_differences
from fl_models.holdout import Holdout
from fl_models.pictures import DataSpec
from fl_models.yolo import ModelMismatchError, YoloModel, from_arrays, get_model, take_weights
from fl_registry import Serving
from fl_registry.files.weights import load_weights

logger = logging.getLogger("flwr.fl_app")


def train_order(config: ServerConfig) -> dict[str, int | str]:
    """What train messages tell the nodes: the training arguments and the rounds of a session.

    Raises
    ------
    TrainArgsError
        The arguments cannot be used.
    """
    text = json.dumps(_train_args(config))
    return {"num-rounds": config.num_server_rounds, "train-args": text}


def train_params(config: ServerConfig) -> dict[str, str]:
    """All training arguments as params of a run, such as ``train-args.lr0``."""
    values = _train_args(config)
    return {f"train-args.{name}": json.dumps(value).strip('"') for name, value in values.items()}


def _train_args(config: ServerConfig) -> dict[str, Any]:
    default = "" if config.data else generated_shapes.TRAIN_ARGS
    return read_train_args(config.train_args or default)


SERVING = Serving(Path(serving.__file__), **serving.SERVING)
"""How MLflow serves a detector, such as for `ModelManager.save_model_version`."""


class YoloOnServer:
    """A detector of Ultralytics with its data set. One thread at a time may use it.

    Parameters
    ----------
    config : ServerConfig
        Name, classes, picture side and seed of the model.
    data : DataSpec
        The data set, whose ``val`` split is the holdout.
    weights : StartingWeights | None
        What the model starts with; None: random weights.

    Raises
    ------
    ConfigError
        If there is no such model, or it can't take pictures of this size or these weights.
    DeviceError
        ``server-device`` is not there.
    """

    def __init__(
        self, config: ServerConfig, data: DataSpec, weights: StartingWeights | None = None
    ) -> None:
        self.data = data
        self._metric = config.metric
        self._model = _new_model(config, data.names, weights)
        self._first = _copy(self._model)
        arguments = _train_args(config).items()
        self._training = {
            **{name: value for name, value in arguments if value is not None},
            "imgsz": config.image_size,
            "batch": config.batch_size,
        }
        self._seed = config.seed
        self.serving = SERVING
        self.holdout = DataUsed(
            f"{data.root.name}/val", data_digest(data.val, data), str(data.root)
        )
        self._device = chosen_device(config.server_device, setting="server-device")
        self._too_much = (
            f"set server-device to 'cpu', or lower batch-size (now {config.batch_size}) or "
            f"image-size (now {config.image_size})"
        )
        self._scores = Holdout(
            data,
            image_size=config.image_size,
            batch_size=config.batch_size,
            device=str(self._device),
        )

    @property
    def description(self) -> dict[str, object]:
        """The model, as the registry keeps it with each version."""
        return dict(self._model.description)

    def order(self) -> ConfigRecord:
        """What each message tells the nodes: class names in order, what to build the model from."""
        model = json.dumps(self.description)
        return ConfigRecord({"names": list(self.data.names), "model": model})

    def first_arrays(self) -> ArrayRecord:
        """First weights: those of the setting, or random ones, which depend on the seed only."""
        return ArrayRecord(dict(self._first))

    def start_from(
        self, version: str, arrays: ArrayRecord, description: Mapping[str, Any]
    ) -> ArrayRecord:
        """Return a version's arrays in the dtypes of the model, for a session that starts from it.

        Parameters
        ----------
        version : str
            The version.
        arrays : ArrayRecord
            Its arrays.
        description : Mapping[str, object]
            What was saved with them; a version that names no classes is accepted with a warning.

        Raises
        ------
        ConfigError
            If it is of another model, or of other classes; names the difference.
        """
        names, own = class_names(description), self.data.names
        if not names:
            logger.warning(
                "version %s does not name its classes, they are taken to be, in this order: %s",
                version,
                ", ".join(own),
            )
        elif names != own:
            difference = name_differences(own, names)
            raise ConfigError(
                f"Version {version} does not know the classes of the data set: {difference}; set "
                "registered-model-name to a name for the model of these data, or restart-from to "
                "'scratch'."
                if difference
                else f"Version {version} has the same classes in another order, which is read when "
                "a run starts; start the run again."
            )
        side = self._model.image_size
        try:
            if names:
                self._model.load_description(description)
            self._load(arrays)
        except ModelMismatchError as err:
            raise ConfigError(
                f"Version {version} does not fit the model of this run ({err}); "
                "set model to that version's, or restart-from to 'scratch'."
            ) from None
        finally:
            self._model.image_size = side
        return _copy(self._model)

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Score arrays on the holdout: mAP50, mAP50-95, precision and recall, from 0 to 1.

        The metric that gates look at is also returned by class, as ``mAP50/fish``, and the matches
        of each picture are returned for paired tests.
        """
        self._load(arrays)
        with device_memory(self._device, self._too_much):
            scores = self._scores(self._model)
        by_class = self._scores.per_class(self._metric)
        classes = {f"{self._metric}/{name}": score for name, score in by_class.items()}
        return ScoredRecord({**scores, **classes}, self._scores.matches)

    @property
    def artifacts(self) -> Sequence[Artifacts]:
        """What is drawn at the end of a session, of its best version on the holdout."""
        return self.predictions, self.curves, self.training_batch

    def predictions(self, report: SessionReport, folder: Path) -> Iterable[Path]:
        """Draw some of its detections beside the labels into ``predictions.png``."""
        from fl_models.drawings import draw_predictions  # Matplotlib is needed at the end alone

        if not self._load_best(report):
            return []
        path = folder / "predictions.png"
        title = f"version {report.version}"
        draw_predictions(self._model, self.data, path, title=title)
        return [path]

    def curves(self, report: SessionReport, folder: Path) -> Iterable[Path]:
        """Draw Ultralytics' curves and confusion matrices, and write ``per_class.csv``."""
        if not self._load_best(report):
            return []
        with device_memory(self._device, self._too_much):
            drawn = self._scores.plot(self._model, folder)
        table = folder / "per_class.csv"
        rows = self._scores.table()
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0] if rows else ["class"])
            writer.writeheader()
            writer.writerows(rows)
        return [*drawn, table]

    def training_batch(self, report: SessionReport, folder: Path) -> Iterable[Path]:
        """Draw some of the server's training pictures, as augmented, into ``train_batch.png``."""
        from fl_models.drawings import draw_training_batch

        if not self.data.train:
            logger.info("no train_batch.png: the server's data set has no training pictures")
            return []
        path = folder / "train_batch.png"
        draw_training_batch(self.data, self._training, path, seed=self._seed)
        return [path]

    def _load_best(self, report: SessionReport) -> bool:
        """Load the best version of a session, and return whether there is one."""
        if report.weights is None:
            return False
        from_arrays(self._model, load_weights(report.weights))
        return True

    def _load(self, arrays: ArrayRecord) -> None:
        from_arrays(self._model, {name: array.numpy() for name, array in arrays.items()})


def _copy(model: YoloModel) -> ArrayRecord:
    return ArrayRecord({name: array.clone() for name, array in model.state_dict().items()})


def _new_model(
    config: ServerConfig, names: Sequence[str], weights: StartingWeights | None
) -> YoloModel:
    name, side = config.model, config.image_size
    if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute():
        raise ConfigError(
            f"model={name!r} is a relative path, which Flower's processes would look for in "
            "another folder; give the absolute path of the model's file."
        )
    try:
        model = get_model(name, len(names), names=names, seed=config.seed, image_size=side)
    except ValueError as error:
        raise ConfigError(f"Run-config key 'model': {error}.") from None
    if weights is not None:
        try:
            taken = take_weights(model, weights.arrays, weights.description)
        except ValueError as error:
            raise ConfigError(f"weights={config.weights!r} can't be used: {error}.") from None
        logger.info("%s taken from %s", taken, weights.source)
    stride = int(model.stride.max())
    if side % stride:
        raise ConfigError(
            f"image-size={side} is no multiple of {stride}, the largest stride of {name}; set it "
            f"to {-(-side // stride) * stride}."
        )
    return model
