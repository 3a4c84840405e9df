# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' training arguments in a federation: which may be set, and how they are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

_OPTIMIZATION = (
    "optimizer lr0 lrf cos_lr momentum weight_decay warmup_epochs warmup_momentum warmup_bias_lr "
    "nbs freeze box cls dfl multi_scale"
)
_AUGMENTATION = (
    "close_mosaic mosaic mixup cutmix hsv_h hsv_s hsv_v degrees translate scale shear perspective "
    "flipud fliplr bgr"
)
NAMES = frozenset(f"{_OPTIMIZATION} {_AUGMENTATION}".split())
"""The arguments that may be set."""

_OPTIMIZERS = [
    "auto",
    "Adam",
    "Adamax",
    "AdamW",
    "NAdam",
    "RAdam",
    "RMSprop",
    "SGD",
    "MuSGD",
]  # Ultralytics' own

# What a setting of the app says already. One that is written as Ultralytics has it is refused too:
# who writes `epochs: 100` expects 100.
_SETTINGS = {
    "epochs": "num-server-rounds and local-epochs",
    "batch": "batch-size",
    "imgsz": "image-size",
    "data": "data",
    "model": "model",
    "seed": "seed",
    "patience": "patience",
    "resume": "resume",
    "project": "home",
    "name": "registered-model-name",
    "device": "device",
    "amp": "amp",
    "workers": "workers",
    "cache": "cache",
}


class TrainArgsError(ValueError):
    """Training arguments cannot be used; the text is one sentence with what to change."""


@dataclass(frozen=True)
class TrainArgs:
    """The training arguments of a local round, and where in the session it is.

    Attributes
    ----------
    values : Mapping[str, Any]
        Arguments by Ultralytics' names (`NAMES`), see `read_train_args`.
    epoch : int
        Global epochs before this round.
    epochs : int
        Global epochs of the session: its rounds times the epochs of a local round.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    epochs: int = 1

    @cached_property
    def text(self) -> str:
        """The arguments as JSON."""
        return json.dumps(self.values, sort_keys=True)


def read_train_args(text: str) -> dict[str, Any]:
    """Return all arguments that a federation uses (`NAMES`), as a setting or a server has them.

    Those that are not named have Ultralytics' defaults, but for ``nbs``: it is None then, and each
    batch makes a step. Nodes step at the same time, so that Ultralytics' 64 pictures a step would
    be 64 of each node, and a session would have as many times fewer steps as it has nodes.

    Parameters
    ----------
    text : str
        YAML or JSON such as ``{lr0: 0.01, fliplr: 0}``, the path of such a file, or nothing.

    Raises
    ------
    TrainArgsError
        It cannot be read, names an unknown argument or one that cannot be set here, or a value is
        not one of Ultralytics'.
    """
    given = _parsed(text)
    try:
        with _silent():
            named = {key: value for key, value in given.items() if (key, value) != ("nbs", None)}
            args = vars(get_cfg(overrides=named))
    except (SyntaxError, TypeError, ValueError) as err:
        hint = ""
        if any(isinstance(value, str) and _is_number(value) for value in given.values()):
            hint = "; YAML reads 1e-3 as a text, write 0.001"
        raise TrainArgsError(f"train-args: {' '.join(str(err).split())}{hint}") from None
    wrong = {key: _SETTINGS[key] for key in given if key in _SETTINGS}
    unused = [
        key
        for key, value in given.items()
        if key not in NAMES and key not in wrong and value != DEFAULT_CFG_DICT.get(key)
    ]
    if wrong or unused:
        reasons = [f"{key} (set {setting} instead)" for key, setting in wrong.items()]
        reasons += [f"{key} (not used in a federation)" for key in unused]
        raise TrainArgsError(
            f"train-args cannot set {', '.join(reasons)}: remove them; "
            f"it may set {', '.join(sorted(NAMES))}"
        )
    _check_values(args)
    if given.get("nbs") is None:
        args["nbs"] = None
    return {key: args[key] for key in sorted(NAMES)}


def _check_values(args: Mapping[str, Any]) -> None:
    """Check what Ultralytics itself finds out when it trains."""
    if str(args["optimizer"]).lower() not in {name.lower() for name in _OPTIMIZERS}:
        raise TrainArgsError(
            f"train-args: optimizer is {args['optimizer']!r}, expected one of {_OPTIMIZERS}"
        )
    freeze = args["freeze"]
    layers = freeze if isinstance(freeze, list) else [freeze or 0]
    if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
        raise TrainArgsError(
            f"train-args: freeze is {freeze!r}, expected the number of first layers or a list of "
            "layer numbers"
        )


def _parsed(text: str) -> dict[str, Any]:
    """Return what a text, or the file that it names, has as YAML."""
    where, content = "train-args", text
    inline = text.lstrip().startswith("{") or ": " in text or "\n" in text
    if text.strip() and not inline:
        where = f"train-args={text!r}"
        try:
            path = Path(text).expanduser()
            if not path.is_absolute():  # Flower's processes run in other folders
                raise FileNotFoundError("the path is not absolute")
            content = path.read_text(encoding="utf-8")
        except (OSError, RuntimeError, UnicodeDecodeError) as err:
            raise TrainArgsError(
                f"{where} cannot be read ({err}); give the absolute path of a YAML file with "
                "Ultralytics' training arguments, or the arguments, such as "
                "'{lr0: 0.01, fliplr: 0}'"
            ) from None
    try:
        given = yaml.safe_load(content)
    except yaml.YAMLError as err:
        reason = " ".join(str(err).split())
        raise TrainArgsError(f"{where} is no YAML: {reason}") from None
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise TrainArgsError(
            f"{where} has {given!r:.60}, expected arguments by name such as "
            "'{lr0: 0.01, fliplr: 0}'"
        )
    return given


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Ultralytics from logging how its command line is used; the error says what is wrong."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
