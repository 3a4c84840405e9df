# SPDX-License-Identifier: Apache-2.0
"""Whatever is typed, each command ends with a sentence or its help, never with a traceback."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cli_store import known_machine, make_home

from fl_app.cli import main
from fl_app.cli.main import COMMANDS, load

EXAMPLES = max(1, settings().max_examples // 12)  # each opens a store, and there are many commands
# What a shell can pass on: all but NUL; bytes that are no UTF-8 arrive as surrogates.
TEXT = st.text(st.characters(exclude_characters="\0/", codec=None), max_size=12)
NUMBERS = st.sampled_from(["0", "1", "-1", "5", "nan", "inf", "1e999", "2.5", "9" * 30, "٣", "0x1"])
WORDS = st.sampled_from(
    ["Production", "staging", "2025-03-05", "None", "--", "-x", "", " ", "[red]"]
)
ADDRESSES = {
    "uri": ["", "gopher://x", "http://127.0.0.1:9", "sqlite:////proc/no/x.db", "x y"],
    "monitor": ["", "x", "sqlite:////proc/no/x.db", "postgresql://127.0.0.1:9/x", "mongo://x"],
    "database_url": ["x", "http://127.0.0.1:9", "sqlite://"],
    "file": ["/proc/no/card.md", "", "/dev/null/x", "card.md"],
    "folder": ["/proc/no/keys", "/dev/null", "keys"],
    "data": ["/proc/no/data.yaml", "", "/dev/null"],
    "to": ["/proc/no/home", "/dev/null", "."],  # of `home move`, which must not succeed
    "token_file": ["/proc/no/token", "/dev/null", ""],
    "host": ["localhost", "0.0.0.0", "no.such.host.invalid", ""],  # noqa: S104
}
VALUES = st.one_of(TEXT, NUMBERS, WORDS)


def leaves(name: str) -> list[tuple[list[str], click.Command]]:
    command = load(name)
    if isinstance(command, click.Group):
        return [([name, each], command.commands[each]) for each in command.commands]
    return [([name], command)]


LEAVES = [leaf for name in COMMANDS for leaf in leaves(name)]


@st.composite
def typed(draw: st.DrawFn, words: list[str], command: click.Command) -> list[str]:
    """A command with any of its options and arguments, and sometimes what it does not have."""
    line = list(words)
    for parameter in command.params:
        name = str(parameter.name)
        known = ADDRESSES.get(name) if name != "to" or words == ["home", "move"] else None
        value = st.sampled_from(known) if known else VALUES
        if isinstance(parameter, click.Argument):
            if draw(st.integers(0, 9)) or words == ["home", "move"]:
                line.append(draw(value))
        elif name != "help" and (parameter.required or draw(st.booleans())):
            line.append(draw(st.sampled_from(parameter.opts)))
            if not getattr(parameter, "is_flag", False):
                line.append(draw(value))
    return line + draw(st.lists(VALUES, max_size=1)) if draw(st.booleans()) else line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a store, and a machine on which nothing is started."""
    folder = tmp_path_factory.mktemp("fuzz")
    make_home(folder / "home")
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        known_machine(patch)
        yield folder / "home"
    os.chdir(before)


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=[" ".join(w) for w, _ in LEAVES])
def test_no_input_gets_a_traceback(
    words: list[str], command: click.Command, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_APP_HOME", str(store))
    monkeypatch.setenv("COLUMNS", "200")

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(line=typed(words, command))
    def run(line: list[str]) -> None:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
            pytest.raises(SystemExit) as ended,
        ):
            main.main(line)
        errors.flush()
        said = errors.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert ended.value.code in (None, 0, 1, 2), said
        assert "Traceback" not in said
        if ended.value.code == 1 and words[0] not in ("doctor", "home"):
            assert len(said.splitlines()) <= 2, said  # which MLflow is used is a line before
            assert said.strip().endswith((".", "`", ")")), said
        if "monitor" not in {parameter.name for parameter in command.params}:
            assert "--monitor" not in said, said

    run()
    assert store.is_dir()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_and_options_are_completed(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completed(line: str) -> str:
        variables = {
            "_FL_APP_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main.main([])
        return capsys.readouterr().out

    assert "versions" in completed("fl-app ver")
    assert "--stage" in completed("fl-app versions --st")
    assert "production" in completed("fl-app versions --stage pro").lower()


@pytest.mark.parametrize(("words", "command"), LEAVES, ids=[" ".join(w) for w, _ in LEAVES])
def test_every_argument_and_option_has_help(words: list[str], command: click.Command) -> None:
    assert command.help, words
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name
