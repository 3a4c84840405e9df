# SPDX-License-Identifier: Apache-2.0
"""A small generated set, drawn once for all tests; tests that change it copy it first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fl_app.client.data_yaml import load_data_spec
from fl_app.client.generated_shapes import shapes_data
from fl_models.pictures import DataSpec


@pytest.fixture(scope="session")
def shapes_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_data(tmp_path_factory.mktemp("shapes"), train=24, val=6, image_size=64)


@pytest.fixture(scope="session")
def shapes(shapes_yaml: Path) -> DataSpec:
    return load_data_spec(shapes_yaml, 7)


@pytest.fixture
def own_yaml(shapes_yaml: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(shapes_yaml.parent, tmp_path / "own")) / "data.yaml"
