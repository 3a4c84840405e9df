# SPDX-License-Identifier: Apache-2.0
"""Names, paths and addresses that lead elsewhere: no file outside, no connection, no bare error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from support.hostile_inputs import payloads

from fl_registry import ArtifactError
from fl_registry.mlflow.files import checked_location, is_model_id

HERE = Path(__file__).parent
NIGHTLY = settings.get_current_profile_name() == "nightly"
ID = "m-0123456789abcdef0123456789abcdef"
SERVER = "http://ada:secret@mlflow.example.org:5000"


@pytest.mark.chaos
def test_no_name_path_or_address_leads_out_of_its_folder(tmp_path: Path) -> None:
    assert len(payloads()) >= 200
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "support" / "hostile_user.py"), "1" if NIGHTLY else "12"],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "FL_APP_HOME": str(tmp_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["problems"] == []
    assert told["count"] > (5000 if NIGHTLY else 400)


@pytest.mark.parametrize(
    "location",
    [
        f"/home/ada/.fl-app/artifacts/models/{ID}/artifacts",
        f"file:///home/ada/my%20files/models/{ID}/artifacts",
        f"s3://bucket/models/{ID}/artifacts",
        f"gs://bucket/{ID}",
        f"mlflow-artifacts:/1/models/{ID}/artifacts",
        f"mlflow-artifacts://mlflow.example.org:5000/1/models/{ID}/artifacts",
        f"dbfs:/models/{ID}/artifacts",
    ],
)
def test_folders_of_a_logged_model_may_be_opened(location: str) -> None:
    assert checked_location(location, ID, tracking_uri=SERVER) == location


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/etc",
        f"/etc/../{ID}",
        f"relative/{ID}",
        f"file://otherhost/{ID}",
        f"file:///x/%2e%2e/{ID}",
        f"http://169.254.169.254/{ID}",
        f"https://mlflow.example.org:5000/{ID}",
        f"ftp://host/{ID}",
        f"sftp://host/{ID}",
        f"runs:/{ID}",
        f"models:/{ID}",
        f"mlflow-artifacts://169.254.169.254/{ID}",
        f"mlflow-artifacts://mlflow.example.org:5001/{ID}",
        f"mlflow-artifacts://mlflow.example.org:5000@evil.example/{ID}",
        f"s3:///{ID}",
        f"s3://bucket/{ID}?versionId=1",
        f"s3://bucket/other#{ID}",
        f"s3://bucket/{ID}x",
        f"s3://bucket/{ID}/a\nb",
        f"//[{ID}",
        *payloads(),
    ],
)
def test_no_other_place_is_opened(location: str) -> None:
    with pytest.raises(ArtifactError, match="is not a folder of the logged model") as caught:
        checked_location(location, ID, tracking_uri=SERVER)
    assert str(caught.value).isprintable()


def test_only_mlflow_s_own_ids_name_a_logged_model() -> None:
    assert is_model_id(ID)
    assert not [text for text in (*payloads(), "m-", f"{ID}/x", f"x{ID}") if is_model_id(text)]
