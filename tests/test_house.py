# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, each as a test: imports, exports, licences, the README's claims."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for d in ("fl_app", "registry", "models") for p in sorted((ROOT / d).rglob("*.py"))]
APACHE = "# SPDX-License-Identifier: Apache-2.0"
AGPL = "# SPDX-License-Identifier: AGPL-3.0-or-later"
YOLO = ("ultralytics", "models.model", "models.holdout", "models.dataset", "models.upstream")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(prefix: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name == prefix or name.startswith(prefix + ".") for name in imported(path))
    }


def folder(name: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in SOURCES if str(p.relative_to(ROOT)).startswith(name)}


@pytest.mark.parametrize(
    ("who", "not_this"),
    [
        ("registry/", "fl_app"),
        ("registry/", "models"),
        ("registry/", "flwr"),
        ("models/", "fl_app"),
        ("models/", "registry"),
        ("models/", "flwr"),
        ("fl_app/strategy/", "fl_app.retraining"),
        ("fl_app/retraining/", "fl_app.strategy"),
        *[
            (neutral, part)
            for neutral in ("fl_app/hooks/", "fl_app/events", "fl_app/dispatch", "fl_app/follower")
            for part in ("fl_app.strategy", "fl_app.retraining")
        ],
        ("fl_app/strategy/", "models.model"),
        ("fl_app/strategy/", "ultralytics"),
        ("fl_app/strategy/", "torch"),
        ("fl_app/", "mlflow"),
        ("models/", "mlflow"),
    ],
)
def test_who_may_not_import_what(who: str, not_this: str) -> None:
    assert not folder(who) & importers(not_this)


def test_what_imports_yolo_is_agpl_and_says_so() -> None:
    yolo = set().union(*(importers(name) for name in YOLO))
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        first = path.read_text().splitlines()[0]
        assert first in (APACHE, AGPL), name
        if name in yolo:
            assert first == AGPL, name


def test_apache_files_lean_on_no_agpl_file() -> None:
    agpl = {
        str(p.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
        for p in SOURCES
        if p.read_text().startswith(AGPL)
    }
    for path in SOURCES:
        if path.read_text().startswith(APACHE):
            assert not agpl & set(imported(path)), path


def loaded_by(statement: str, *modules: str) -> list[str]:
    code = f"{statement}; import sys; print(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    ["import fl_app.strategy", "import fl_app.hooks", "import registry", "import models.weights"],
)
def test_the_light_parts_load_nothing_heavy(statement: str) -> None:
    heavy = ("mlflow", "ultralytics", "torch", "torchvision", "sqlalchemy", "matplotlib", "cv2")
    assert loaded_by(statement, *heavy) == []


@pytest.mark.parametrize(
    "package", ["fl_app", "fl_app.hooks", "fl_app.strategy", "fl_app.retraining", "registry"]
)
def test_all_public_names_exist_and_are_sorted(package: str) -> None:
    module = __import__(package, fromlist=["__all__"])
    assert module.__all__ == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_promised_names_are_there() -> None:
    import fl_app
    import registry
    from models.weights import save_weights

    assert {"LifecycleStrategy", "RetrainingManager", "RoundReport"} <= set(fl_app.__all__)
    promised = {"FederatedLearningTracker", "InMemoryModelStore", "ModelManager", "Stage"}
    assert promised <= set(registry.__all__)
    assert callable(save_weights)


def test_nothing_is_named_after_nothing() -> None:
    bad = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [p for p in SOURCES if bad & {p.stem, p.parent.name}] == []


def test_the_readme_s_start_has_exactly_two_blocks() -> None:
    text = (ROOT / "README.md").read_text()
    start = text.split("## Start", 1)[1].split("\n## ", 1)[0]
    assert start.count("```bash") == 2


def test_the_readme_s_diff_is_the_example_s() -> None:
    app = ROOT / "examples" / "sklearn-digits" / "digits_app"
    plain = (app / "plain_server_app.py").read_text().splitlines()
    ours = (app / "server_app.py").read_text().splitlines()
    gone = [f"-{line}" for line in plain if line not in ours]
    new = [f"+{line}" for line in ours if line not in plain]
    assert len(gone) == 1
    assert len(new) == 2
    for text in (ROOT / "README.md", app.parent / "README.md"):
        assert all(line in text.read_text() for line in (*gone, *new))
