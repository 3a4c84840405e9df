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
    document = openapi()
    return "".join(
        part
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for part in _endpoint(method.upper(), path, operation, document["components"]["schemas"])
    )


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


def _endpoint(method: str, path: str, operation: Any, schemas: Any) -> Iterator[str]:
    yield f"\n## {method} {path}\n\n{operation['summary']}\n\n{operation['description']}\n"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    rows = [(p["name"], p["in"], p["schema"], p["required"]) for p in _with_required(operation)]
    rows += [
        (name, "body", kind, name in found.get("required", []))
        for found in [_resolved(body.get("schema", {}), schemas)]
        for name, kind in found.get("properties", {}).items()
    ]
    if rows:
        yield "\n| name | in | type | required | meaning |\n|---|---|---|---|---|\n"
    for name, where, kind, required in rows:
        needed = "yes" if required else ""
        meaning = " ".join(kind.get("description", "").split())
        yield f"| `{name}` | {where} | {_type(kind)} | {needed} | {meaning} |\n"
    for status, answer in operation["responses"].items():
        found = next(iter(answer.get("content", {"": {}}).values())).get("schema", {})
        yield f"\n`{status}`: {answer['description']} {_answer(_resolved(found, schemas))}\n"


def _with_required(operation: Any) -> Iterator[Any]:
    for parameter in operation["parameters"]:
        yield {"required": False, **parameter}


def _resolved(schema: Any, schemas: Any) -> Any:
    name = schema.get("$ref", "").rpartition("/")[2]
    return schemas[name] if name else schema


def _type(schema: Any) -> str:
    kinds = schema.get("anyOf", [schema])
    names = [k.get("type") or k.get("$ref", "").rpartition("/")[2] for k in kinds]
    return " or ".join(f"`{name}`" for name in names if name and name != "null")


def _answer(schema: Any) -> str:
    names = [f"`{name}`" for name in schema.get("properties", {})]
    return f"Keys: {', '.join(names)}." if names else ""


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "rest": rest}
