# SPDX-License-Identifier: Apache-2.0
"""A round of two simulated nodes beside NVFlare's simulator, which keeps no versions.

Ours is `LifecycleStrategy(FedAvg())` on Flower's simulation, each round logged, registered and
staged. The 12 MB are 30 arrays there, and one in NVFlare, which is the form of NVFlare's recipe.
The nodes send back at once what they got. NVFlare is installed into an environment of its own;
where that cannot be, there is no row. The sides run in turn; a figure is the median of a run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from benchmarks import scale
from benchmarks.table import Row, parser, report

VERSION, NODES, REPEATS = "2.9.0", 2, 5
CLIENT = """
import sys, time
import nvflare.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    with open(sys.argv[1], "a") as moments:
        moments.write(f"{time.time()}\\n")
    meta = {"NUM_STEPS_CURRENT_ROUND": 1}
    flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.5}, meta=meta))
"""
JOB = """
import sys
import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
folder, nodes, rounds, floats = sys.argv[1], *map(int, sys.argv[2:])
np.save(f"{folder}/model.npy", np.random.default_rng(0).random(floats, dtype=np.float32))
sites = [f"site-{number}" for number in range(1, nodes + 1)]
recipe = NumpyFedAvgRecipe(
    name="bench", initial_ckpt=f"{folder}/model.npy", min_clients=nodes, num_rounds=rounds,
    train_script=f"{folder}/client.py", train_args=f"{folder}/moments",
)
env = SimEnv(clients=sites, num_threads=nodes, workspace_root=f"{folder}/workspace")
recipe.execute(env).get_result()
"""


def installed(folder: Path) -> Path | None:
    """Install NVFlare into a new environment; return its Python, or None if that fails."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    steps = (
        ["uv", "venv", "--quiet", "--python", version, str(folder)],
        ["uv", "pip", "install", "--quiet", "--python", str(python), f"nvflare=={VERSION}"],
    )
    for words in steps:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"no row: NVFlare cannot be installed: {done.stderr.strip()[-300:]}", flush=True)
            return None
    return python


def their_seconds(python: Path) -> float:
    """Median seconds of a round in NVFlare's simulator, without the first two."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "client.py").write_text(CLIENT)
        (folder / "job.py").write_text(JOB)
        words = [str(python), str(folder / "job.py"), name, str(NODES), str(scale.ROUNDS + 2)]
        words.append(str(scale.FLOATS))
        subprocess.run(words, cwd=folder, capture_output=True, check=True)
        moments = sorted(map(float, (folder / "moments").read_text().split()))
    begun = moments[::NODES]  # both nodes get the model of a round before the next one
    return statistics.median([after - before for before, after in pairwise(begun)][1:])


def measure() -> Iterator[Row]:
    """The one row, if NVFlare can be installed."""
    with tempfile.TemporaryDirectory() as name:
        python = installed(Path(name) / "environment")
        if python is None:
            return
        ours, theirs = list[float](), list[float]()
        for _ in range(REPEATS):
            theirs.append(their_seconds(python))
            ours.append(scale.run("wrapped", NODES, 0.0)["seconds"])
            print(json.dumps([ours[-1], theirs[-1]]), flush=True)
    what = f"a round of {NODES} simulated nodes that answer at once, 12 MB, s"
    yield Row(what, ours, f"NVFlare {VERSION}'s simulator, FedAvg, nothing registered", theirs)


def main() -> None:
    """Print the table, and write its rows where ``--json`` says."""
    report(measure(), parser(__doc__).parse_args().json)


if __name__ == "__main__":
    main()
