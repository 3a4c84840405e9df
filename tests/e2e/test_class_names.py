# SPDX-License-Identifier: Apache-2.0
"""Nodes that list their classes in another order than the server, or have others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.deployment import deployment, start, wait_until
from support.flower import Flower

from fl_app.client.generated_shapes import NAMES, shapes_data
from fl_registry import ModelManager
from fl_registry.files.weights import load_weights

pytestmark = pytest.mark.slow

CONFIG = (
    "min-nodes=3 num-server-rounds=1 image-size=64 local-epochs=1 batch-size=4 data-summaries=false"
)


def data_set(folder: Path, names: tuple[str, ...]) -> Path:
    """The same pictures in each folder, with the classes in this order."""
    data = shapes_data(folder, train=12, val=4, image_size=64)
    place = [names.index(name) for name in NAMES]
    for label in (data.parent / "labels").rglob("*.txt"):
        rows = [row.split(maxsplit=1) for row in label.read_text().splitlines()]
        label.write_text("".join(f"{place[int(number)]} {box}\n" for number, box in rows))
    data.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    return data


def last_version(
    flower: Flower, app: Path, superlink: str, holdout: Path, name: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Weights and row of the last version that a session has made, and the server's log."""
    config = f'{CONFIG} data="{holdout}" registered-model-name="{name}"'
    run = start(flower, app, config, superlink)
    status = wait_until(
        lambda: found if "finished:" in (found := run.status()) else "", 300, f"the end of {name}"
    )
    log = " ".join(run.log().split())
    assert "finished:completed" in status, log[-5000:]
    manager = ModelManager(None, name, home=flower.fl_app_home)
    row = manager.list_all_versions()[0]
    assert row["tags"]["round"] == "1"
    return load_weights(manager.weights_path(row["version"])), row, log


def test_the_order_of_names_changes_nothing_and_a_node_with_other_names_is_refused(
    own: Flower, app: Path, tmp_path: Path
) -> None:
    holdout = data_set(tmp_path / "holdout", NAMES)
    nodes = [data_set(tmp_path / f"node-{number}", NAMES) for number in (1, 2, 3)]
    nodes[2].write_text(nodes[2].read_text().replace("star", "stars"))
    with deployment(own, nodes, supernode="torch") as superlink:
        same, _, _ = last_version(own, app, superlink, holdout, "same-order")
        turned = data_set(tmp_path / "turned", NAMES[::-1])
        nodes[1].parent.rename(tmp_path / "before")
        turned.parent.rename(nodes[1].parent)
        other, row, log = last_version(own, app, superlink, holdout, "other-order")
    assert [name for name, array in same.items() if not np.array_equal(array, other[name])] == []
    digests = {node["data_digest"] for node in json.loads(row["tags"]["nodes"])}
    assert len(digests) == 2  # the names are in the digest
    rejected = json.loads(row["tags"]["rejected"])
    assert {each["phase"] for each in rejected} == {"train", "evaluate"}
    (node,) = {each["node_id"] for each in rejected}
    (reason,) = {each["reason"] for each in rejected}
    assert "it has 'stars' (did you mean 'star'?) and it lacks 'star'" in reason
    assert f"round 1: node {node} is rejected: " in log
