# SPDX-License-Identifier: Apache-2.0
"""A hook of MkDocs: the parts of the site that are made from the product and from the README."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FROM_THE_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "report-a-vulnerability.md": "SECURITY.md",
    "code-of-conduct.md": "CODE_OF_CONDUCT.md",
}
"""Pages of the site that are files beside this folder."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from files of the repository's root."""
    from mkdocs.structure.files import File

    for page, name in FROM_THE_ROOT.items():
        text = (ROOT / name).read_text()
        files.append(File.generated(config, page, content=from_the_root(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is generated, and name files that are no pages without a link."""
    for name, make in PARTS.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    for page, name in FROM_THE_ROOT.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def from_the_root(text: str) -> str:
    """Return a file of the root with its links as they are on a page of the site."""
    for page, name in FROM_THE_ROOT.items():
        text = text.replace(f"]({name})", f"]({page})")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]*)\]\((?:examples|LICENSE|deploy|\.github)[^)]*\)", r"\1", text)


def commands() -> str:
    """Return the reference of the command line, from the commands themselves."""
    from click import Context

    from fl_app.cli.main import COMMANDS, load

    def described(command: Any, name: str, context: Any) -> Iterator[str]:
        here = Context(command, info_name=name, parent=context)
        yield f"\n### {here.command_path}\n\n{command.help or ''}\n"
        yield f"\n```\n{command.get_usage(here).removeprefix('Usage: ')}\n```\n"
        yield from _table(command.params)
        for sub, other in getattr(command, "commands", {}).items():
            yield from described(other, sub, here)

    program = Context(load("status"), info_name="fl-app")
    return "".join(part for name in COMMANDS for part in described(load(name), name, program))


def _table(params: list[Any]) -> Iterator[str]:
    rows = [p for p in params if getattr(p, "help", None) and "--help" not in p.opts]
    if rows:
        yield "\n| argument or option | meaning |\n|---|---|\n"
    for param in rows:
        option = param.param_type_name == "option"
        name = ", ".join(param.opts) if option else param.human_readable_name
        yield f"| `{name}` | {' '.join(param.help.split())} |\n".replace("||", "")


def rest() -> str:
    """Return the reference of the REST API, from its OpenAPI document."""
    from fl_app.api.page.api_docs import routes_of

    routes = routes_of(openapi(), "http://localhost:5001")
    return "".join(part for route in routes for part in _route(route))


def _route(route: Any) -> Iterator[str]:
    yield f"\n## {route.method} {route.path}\n\n{route.summary}\n\n{route.more}\n"
    for title, rows in (("request", route.takes), (f"answer ({route.status})", route.gives)):
        if rows:
            yield f"\n| {title} | in | type | meaning |\n|---|---|---|---|\n"
        for row in rows:
            meaning = " ".join(row.meaning.split()) + (" (required)" if row.required else "")
            yield f"| `{row.name}` | {row.place} | {row.type} | {meaning} |\n"
    yield f"\n```\n{route.example}\n```\n"


def openapi() -> Any:
    """Return the OpenAPI document of a server with a registry."""
    from fl_app import RetrainingManager, create_trigger_api
    from fl_registry import InMemoryModelStore

    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("FL_APP_HOME")
        os.environ["FL_APP_HOME"] = folder
        try:
            app = create_trigger_api(RetrainingManager(), store=InMemoryModelStore())
            answer = app.test_client().get("/openapi.json")
        finally:
            os.environ.pop("FL_APP_HOME")
            if before is not None:
                os.environ["FL_APP_HOME"] = before
    return answer.get_json()


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "rest": rest}
