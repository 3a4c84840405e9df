# SPDX-License-Identifier: Apache-2.0
"""Looks for bytes that break `replies.try_bytes`, guided by the coverage of fl-app's own code.

``python -m fuzz`` runs for 20 minutes; ``-max_total_time=60`` and other options of libFuzzer go
behind. It needs `atheris` (https://github.com/google/atheris). An input that breaks something is
written to the folder that it is started in; put it into ``corpus`` once that is mended.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import atheris

CORPUS = Path(__file__).with_name("corpus")

with atheris.instrument_imports(include=["fl_app", "fl_registry"], enable_loader_override=False):
    from flwr.app.message import arrayrecord
    from flwr.supercore.task_identity import TaskIdentity

    from fuzz.replies import seeds, try_bytes


def main() -> None:
    """Fuzz from the corpus and the seeds; the process ends with libFuzzer's status."""
    logging.disable(logging.CRITICAL)
    arrayrecord.gc = SimpleNamespace(collect=lambda: 0)  # Flower's takes most of the time
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 7, 1
    found = Path(tempfile.mkdtemp(prefix="fl-app-fuzz-"))
    for path in CORPUS.glob("*"):
        shutil.copy(path, found)
    for number, data in enumerate(seeds()):
        (found / f"seed-{number}").write_bytes(data)
    defaults = [str(found), "-max_total_time=1200", "-max_len=4096", "-timeout=5"]
    atheris.Setup([sys.argv[0], *defaults, *sys.argv[1:]], try_bytes)
    sys.stderr.write(f"what it finds is kept in {found}\n")
    atheris.Fuzz()


if __name__ == "__main__":
    main()
