# SPDX-License-Identifier: Apache-2.0
"""Shadow evaluation on a SuperLink with three SuperNodes, with four strategies inside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.deployment import deployment
from support.flower import Flower
from support.small_apps import small_app

from fl_registry import ModelManager

pytestmark = pytest.mark.slow

ROUND = re.compile(
    r"shadow round 1/2 .* accuracy (0\.\d+) against (0\.\d+) .* of 3 nodes .*  (\d+\.\d) kB extra"
)


def test_nodes_tell_better_from_worse_whatever_strategy_is_inside(
    own: Flower, tmp_path: Path
) -> None:
    app = small_app(
        tmp_path / "app",
        "points",
        server="points_server:app",
        client="points_client:app",
    )
    with deployment(
        own, [Path(str(number)) for number in range(3)], supernode="numpy"
    ) as superlink:
        printed = own.run(app, "", superlink)
    told = [ROUND.search(line) for line in printed.splitlines() if "shadow round" in line]
    assert len(told) == 4
    store = ModelManager(None, "points", home=own.fl_app_home)
    results = [json.loads(store.get_version(version).tags["shadow"]) for version in "2345"]
    assert [r["outcome"] for r in results] == ["better", "better", "better", "worse"]
    assert [max(r["better"], r["worse"]) for r in results] == [3] * 4
    for result, found in zip(results, told, strict=True):
        assert found is not None
        # Both models to three nodes, 800 bytes each, with their configs and the answers.
        assert 6 * 800 < result["extra_bytes"] < 6 * 1500
        assert found[3] == f"{result['extra_bytes'] / 1e3:.1f}"
        assert (float(found[1]) > float(found[2])) == (result["outcome"] == "better")
    worse = store.get_version("5")
    assert (str(worse.stage), worse.tags["approval"]) == ("Archived", "rejected")
    assert "worse than version 1 on the nodes" in store.history()[-1].reason
    assert store.get_latest_version("Production") == "1"
