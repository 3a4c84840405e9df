# SPDX-License-Identifier: Apache-2.0
"""The deployment's connection is written into Flower's configuration, of which all else stays."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.cli.flower_config import read_superlink_connection

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.local import NAME, write_connection

MINE = """# my own notes
[superlink]
default = "lab"

[superlink.lab]  # ours
address = "lab.example:443"
options.num-supernodes = 4

[superlink.local-deployment-2]
address = "127.0.0.1:9"
insecure = true
"""
OLD = """[superlink.local-deployment]
address = "127.0.0.1:1"
insecure = true
[superlink.local-deployment.options]
num-supernodes = 3

[other]
key = "value"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "flwr").mkdir()
    return tmp_path / "flwr" / "config.toml"


def authority(folder: Path) -> Path:
    return folder / "a folder" / "ca.crt"


@pytest.mark.parametrize("text", [MINE, MINE + OLD, OLD + MINE, OLD])
def test_the_connection_is_written_and_the_rest_stays(
    file: Path, tmp_path: Path, text: str
) -> None:
    file.write_text(text)
    before = tomllib.loads(text)
    write_connection("127.0.0.1:8000", authority(tmp_path))
    written = file.read_text()
    after = tomllib.loads(written)
    assert after["superlink"].pop(NAME) == {
        "address": "127.0.0.1:8000",
        "root-certificates": str(authority(tmp_path)),
    }
    before.get("superlink", {}).pop(NAME, None)
    assert after == {"superlink": {}, **before}
    assert ("# my own notes" in written) == ("# my own notes" in text)
    write_connection("127.0.0.1:8000", authority(tmp_path))
    assert file.read_text() == written


def test_flower_reads_it(file: Path, tmp_path: Path) -> None:
    file.write_text(MINE)
    write_connection("127.0.0.1:8000", authority(tmp_path))
    found = read_superlink_connection(NAME)
    assert found.address == "127.0.0.1:8000"
    assert found.root_certificates == str(authority(tmp_path))
    assert not found.insecure


def test_a_file_that_is_not_toml_is_not_changed(file: Path, tmp_path: Path) -> None:
    file.write_text("[superlink")
    with pytest.raises(DeploymentError, match="is not TOML"):
        write_connection("127.0.0.1:8000", authority(tmp_path))
    assert file.read_text() == "[superlink"
