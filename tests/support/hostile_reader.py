# SPDX-License-Identifier: Apache-2.0
"""A process that reads hostile files as the app does: run as `hostile_reader.py DIR [all]`.

Once it has read good files, nothing may be run, imported, started or fetched, no file written
elsewhere, and no more memory be used than a limit. What was tried all the same is told as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from fl_app.client.data_yaml import DataError, load_data_spec
from fl_app.client.summary.reference import load_reference, new_reference, save_reference
from fl_app.strategy.checkpoints.round_store import load_array_record
from fl_registry import ArtifactError, InMemoryModelStore, RegistryError
from fl_registry.files.artifacts import checked_header, prepared, write_half
from fl_registry.files.weights import WeightsError, load_weights, save_weights
from support.watched import CODE, NETWORK, PROGRAMS, Watch

SPARE = 512 << 20  # bytes of memory, far below what the bombs become
OURS = {"fl_app", "fl_registry", "fl_models", "torch", "numpy", "safetensors", "flwr", "yaml"}
WAYS = {
    ".pt": ("prepared", "save_model_version"),
    ".safetensors": ("save_model_version", "load_weights", "load_array_record", "write_half"),
    ".npz": ("load_reference",),
    ".yaml": ("load_data_spec",),
}
"""The ways by which a file of each kind comes in; nightly each kind is tried in all of them."""
KNOWN = (RegistryError, WeightsError, DataError, OSError)


def readers(scratch: Path) -> dict[str, Callable[[Path], object]]:
    """Return all the ways in which a file comes in."""
    store = InMemoryModelStore(scratch / "store")

    def prepare(path: Path) -> None:
        with prepared(path, scratch):
            pass

    def save_and_use(path: Path) -> None:
        version = store.save_model_version(path)
        store.promote_to_production(version)
        with contextlib.suppress(ArtifactError):
            store.load_production_model(lambda: nn.Linear(2, 2))
        store.compare_versions(version, version)
        store.compress_version(version)

    def reference(path: Path) -> None:
        if load_reference(path) is None:
            raise DataError("it starts anew")

    return {
        "prepared": prepare,
        "save_model_version": save_and_use,
        "load_weights": load_weights,
        "load_array_record": load_array_record,
        "checked_header": lambda path: checked_header(path, shown=path),
        "write_half": lambda path: write_half(path, scratch / "half.safetensors"),
        "load_reference": reference,
        "load_data_spec": lambda path: load_data_spec(path, 1),
    }


def warm(folder: Path, ways: dict[str, Callable[[Path], object]]) -> None:
    """Read good files, so that all that is imported when first needed is there."""
    import torch

    save_weights({"w": np.ones(3, np.float32)}, folder / "good.safetensors")
    torch.save(nn.Linear(2, 2).state_dict(), folder / "good.pt")
    made = new_reference("r", {"a": np.arange(100.0)}, np.arange(100, dtype=np.uint64))
    save_reference(made, folder / "good.npz")
    (folder / "good.yaml").write_text("train: .\nval: .\nnames: [a]")
    (folder / "bad.pt").write_bytes(b"nothing")
    for path in folder.glob("*.*"):
        for way in ways.values():
            with contextlib.suppress(*KNOWN):
                way(path)
    assert load_reference(folder / "good.npz") is not None


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main(corpus: Path, everything: bool) -> None:
    warnings.simplefilter("ignore")
    scratch = Path(tempfile.mkdtemp(dir=corpus.parent))
    tempfile.tempdir = str(scratch)
    ways, found = readers(scratch), []
    (scratch / "good").mkdir()
    warm(scratch / "good", ways)
    watch = Watch(scratch, (*PROGRAMS, *NETWORK, *CODE), packages=OURS)
    limit_memory()
    read = []
    for path in sorted(corpus.iterdir()):
        for name in ways if everything else WAYS[path.suffix]:
            way = ways[name]
            watch.tried.clear()
            try:
                way(path)
                read.append(f"{path.name} by {name}")
            except KNOWN as error:
                if "\n" in str(error):
                    found.append(f"{path.name} by {name}: more than one line: {error}")
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
                found.append(f"{path.name} by {name}: {type(error).__name__}: {error!s:.200}")
            found += [f"{path.name} by {name}: tried {what}" for what in watch.tried]
    sys.stdout.write(json.dumps({"problems": found, "read": read}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["all"])
