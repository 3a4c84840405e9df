# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small generated set and a model that finds something in it without having been trained."""

from __future__ import annotations

import pytest
from support.lively import enlivened, labelled_by

from fl_models.pictures import DataSpec
from fl_models.yolo import YoloModel, get_model


@pytest.fixture(scope="session")
def lively_model() -> YoloModel:
    return enlivened(get_model("n", 7, names=[f"class {i}" for i in range(7)], seed=3))


@pytest.fixture(scope="session")
def labelled_by_model(
    lively_model: YoloModel, tmp_path_factory: pytest.TempPathFactory
) -> DataSpec:
    return labelled_by(lively_model, tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Ultralytics fetches a font before it reads a data set."""
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: None)
