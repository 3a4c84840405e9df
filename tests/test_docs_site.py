# SPDX-License-Identifier: AGPL-3.0-or-later
"""The documentation: every page is in the site, links lead somewhere, snippets and commands run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.common.config import parse_config_args
from support.docs import ROOT, blocks, page
from support.guide import SNIPPETS

from fl_app.cli.main import COMMANDS, load
from fl_app.config import ServerConfig

spec = importlib.util.spec_from_file_location("site_parts", ROOT / "docs" / "site_parts.py")
assert spec is not None
assert spec.loader is not None
site_parts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site_parts)
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
ALL = ["README.md", *PAGES]
RUN_ELSEWHERE = {
    "use-the-model.md": "test_use_the_model.py",
    "troubleshooting.md": "test_docs_commands.py",
}
"""Pages whose Python needs more than an empty home, with the tests that run all of it."""
CODE = [(name, code) for name in ALL if name not in RUN_ELSEWHERE for code in blocks(page(name))]
FL_APP = r"(?:^(?:\$ |    )?|`)(?:uv run |\.venv/bin/)?fl-app " + (
    r"((?:[^`\n\"'#|<>]|\"[^\"\n]*\"|'[^'\n]*')+)"
)


def navigation() -> list[str]:
    """Return the pages that the site's navigation names."""
    text = (ROOT / "mkdocs.yml").read_text()

    def leaves(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        inner = node.values() if isinstance(node, dict) else node
        return [leaf for item in inner for leaf in leaves(item)]

    return leaves(yaml.safe_load(text)["nav"])


def test_every_page_is_in_the_site_s_navigation() -> None:
    assert sorted(navigation()) == sorted([*PAGES, *site_parts.FROM_THE_ROOT])
    assert all((ROOT / name).is_file() for name in site_parts.FROM_THE_ROOT.values())


def anchors(text: str) -> set[str]:
    """Return the names of a page's headings, as MkDocs and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {
        re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles
    }


@pytest.mark.parametrize("name", [*ALL, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / "docs" / name if name in PAGES else ROOT / name
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text()), target


@pytest.mark.parametrize(("name", "code"), CODE, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CODE)])
def test_each_snippet_runs(
    home: Path, name: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, name, "exec"), {"__name__": "snippet"})  # noqa: S102 - our own pages


def test_pages_that_are_run_elsewhere_have_their_test() -> None:
    for name, test in RUN_ELSEWHERE.items():
        assert name in (ROOT / "tests" / test).read_text()


def test_each_command_exists_with_its_options() -> None:
    found = 0
    for name in ALL:
        for line in re.findall(FL_APP, page(name).replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(line)
            if words[0].startswith(("COMMAND", "--", "…")):
                continue
            assert words[0] in COMMANDS, (name, line)
            found += 1
            command = load(words[0])
            for word in words[1:]:
                command = getattr(command, "commands", {}).get(word, command)
            known = {
                opt for param in command.params for opt in (*param.opts, *param.secondary_opts)
            }
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            if words[0] not in ("run", "supernode"):  # Flower's own arguments follow
                assert given <= known, (name, line)
    assert found > 60


def test_each_run_config_is_accepted() -> None:
    defaults = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    found = [
        (name, text)
        for name in ALL
        for text in re.findall(r"--run-config '([^']*)'", page(name))
        if "key=value" not in text
    ]
    assert len(found) > 3
    for name, text in found:
        given = parse_config_args([text])
        assert set(given) <= set(defaults), (name, text)
        ServerConfig.from_run_config({**defaults, **given, "train-args": ""})


def test_the_imports_of_the_guide_are_those_that_tests_run() -> None:
    ours = re.findall(r"^\| `from .*` \| `(from .*)` \|$", page("guide-imports.md"), re.MULTILINE)
    run = set(re.findall(r"^from fl_\w+(?:\.\w+)? import .*$", SNIPPETS.read_text(), re.MULTILINE))
    assert set(ours) == run


def test_the_reference_has_every_command_and_every_path() -> None:
    commands = site_parts.commands()
    assert [name for name in COMMANDS if f"### fl-app {name}\n" not in commands] == []
    assert "`--note`" in commands
    paths = site_parts.openapi()["paths"]
    rest = site_parts.rest()
    assert len(paths) > 10
    assert [path for path in paths if f" {path}\n" not in rest] == []
    assert "| `reason` | body | text" in rest


def test_the_readme_is_the_site_s_first_page() -> None:
    text = site_parts.from_the_root(page("README.md"))
    assert "](docs/" not in text
    assert "](changelog.md)" in text
    assert len(page("README.md").splitlines()) <= 200
