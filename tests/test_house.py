# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, each as a test: imports, exports, licences, the README's claims."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "fl_app", ROOT / "registry" / "fl_registry", ROOT / "models" / "fl_models")
SOURCES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
APACHE = "# SPDX-License-Identifier: Apache-2.0"
AGPL = "# SPDX-License-Identifier: AGPL-3.0-or-later"
YOLO = (
    "ultralytics",
    "fl_models.yolo",
    "fl_models.decoding",
    "fl_models.holdout",
    "fl_models.dataset",
    "fl_models.export",
)


def module_of(path: Path) -> str:
    """The name that a source file is imported by."""
    package = next(p for p in PACKAGES if path.is_relative_to(p))
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports: lazily, for types only, or at its head."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def importers(prefix: str) -> set[str]:
    return {
        module
        for module, path in MODULES.items()
        if any(belongs(name, prefix) for name in imported(path))
    }


RULES = {
    "fl_registry": ["fl_app", "fl_models", "flwr"],
    "fl_models": ["fl_app", "fl_registry", "flwr", "mlflow"],
    "fl_registry.store": ["fl_registry.mlflow"],
    "fl_app": ["mlflow"],
    "fl_app.strategy": ["fl_app.retraining", "fl_models", "ultralytics", "torch"],
    "fl_app.strategy.round": ["fl_app.strategy.session"],
    "fl_app.strategy.finish": ["fl_app.strategy.session"],
    "fl_app.retraining": ["fl_app.strategy"],
    "fl_app.hooks": ["fl_app.strategy", "fl_app.retraining"],
}
FOR_THEMSELVES = {  # who may import these, besides what is in them
    "fl_app.api": ("fl_app.server_app", "fl_app.cli"),
    "mlflow": ("fl_registry.mlflow", "fl_registry.serving.pyfunc_model"),
    # What Flower and MLflow do not document.
    **dict.fromkeys(
        ("flwr.clientapp.typing", "flwr.common", "flwr.proto", "flwr.supercore", "flwr.superlink"),
        ("fl_app.flower_internals",),
    ),
    **dict.fromkeys(
        ("mlflow.store", "mlflow.system_metrics", "mlflow.tracking", "mlflow.utils"),
        ("fl_registry.mlflow.internals",),
    ),
}
MAY_IMPORT = {  # of our packages
    "fl_app.wire": ("fl_registry",),
    "fl_app.events": ("fl_registry",),
}


@pytest.mark.parametrize(("who", "not_this"), [(w, t) for w in RULES for t in RULES[w]])
def test_who_may_not_import_what(who: str, not_this: str) -> None:
    assert [name for name in importers(not_this) if belongs(name, who)] == []


@pytest.mark.parametrize("what", FOR_THEMSELVES)
def test_who_alone_may_import_what(what: str) -> None:
    may = (what, *FOR_THEMSELVES[what])
    others = {name for name in importers(what) if not any(belongs(name, it) for it in may)}
    assert others - {"fl_app"} == set()  # which only names what it exports


@pytest.mark.parametrize("who", MAY_IMPORT)
def test_what_the_ground_imports(who: str) -> None:
    others = {
        name
        for module in MODULES
        if belongs(module, who)
        for name in imported(MODULES[module])
        if name in MODULES and not belongs(name, who)
    }
    assert [n for n in others if not any(belongs(n, it) for it in MAY_IMPORT[who])] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for types only count as well: such a circle cannot be read from the ground up."""
    needs = {
        module: {name for name in imported(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    while free := {module for module, names in needs.items() if not names & set(needs)}:
        needs = {module: names for module, names in needs.items() if module not in free}
    assert sorted(needs) == []


def test_a_folder_can_be_seen_at_one_look() -> None:
    sizes = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > 15} == {}


def test_what_imports_yolo_is_agpl_and_says_so() -> None:
    yolo = set().union(*(importers(name) for name in YOLO))
    for name, path in MODULES.items():
        first = path.read_text().splitlines()[0]
        assert first in (APACHE, AGPL), name
        if name in yolo:
            assert first == AGPL, name


def test_apache_files_lean_on_no_agpl_file() -> None:
    agpl = {name for name, path in MODULES.items() if path.read_text().startswith(AGPL)}
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
    [
        "import fl_app.strategy",
        "import fl_app.hooks",
        "import fl_registry",
        "import fl_registry.files.weights",
    ],
)
def test_the_light_parts_load_nothing_heavy(statement: str) -> None:
    heavy = ("mlflow", "ultralytics", "torch", "torchvision", "sqlalchemy", "matplotlib", "cv2")
    assert loaded_by(statement, *heavy) == []


PUBLIC = [
    "fl_app", "fl_app.api", "fl_app.hooks", "fl_app.retraining", "fl_app.strategy", "fl_registry",
]  # fmt: skip


@pytest.mark.parametrize("package", PUBLIC)
def test_all_public_names_exist_and_are_sorted(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_promised_names_are_there() -> None:
    import fl_app
    import fl_registry
    from fl_registry.files.weights import save_weights

    assert {"LifecycleStrategy", "RetrainingManager", "RoundReport"} <= set(fl_app.__all__)
    promised = {"FederatedLearningTracker", "InMemoryModelStore", "ModelManager", "Stage"}
    assert promised <= set(fl_registry.__all__)
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


def test_no_two_places_are_equal_for_twelve_lines() -> None:
    places: dict[tuple[str, ...], list[str]] = {}
    for module, path in MODULES.items():
        rows = [(n, line.strip()) for n, line in enumerate(path.read_text().splitlines(), 1)]
        rows = [(number, line) for number, line in rows if line]
        for start in range(len(rows) - 11):
            window = tuple(line for _, line in rows[start : start + 12])
            places.setdefault(window, []).append(f"{module}:{rows[start][0]}")
    assert [found for found in places.values() if len(found) > 1] == []


def test_no_class_is_a_half_of_another() -> None:
    """A base class of ours with one subclass was made to keep a file short."""
    classes = {
        node.name: node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    bases = Counter(
        base.id
        for node in classes.values()
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in classes
    )
    public = {name for package in PUBLIC for name in import_module(package).__all__}
    alone = {name for name, count in bases.items() if count == 1} - public
    alone = {name for name in alone if not name.endswith("Error")}
    assert sorted(alone) == []
