# SPDX-License-Identifier: Apache-2.0
"""The snippets of docs/retraining.md on probation run as they are written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support.api_client import versions
from support.docs import block, run_block

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import Probation, RetrainingManager


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_the_curl_line_is_counted(tmp_path: Path) -> None:
    store = versions(tmp_path, 8)
    store.promote_to_production("8")
    server = serve_api(create_trigger_api(RetrainingManager(), store=store), port=0)
    assert server is not None
    command = block("retraining.md", "/production_metrics", "bash")
    command = command.replace(":5001", f":{server.port}").replace("curl ", "curl -sS ")
    try:
        done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True)
    finally:
        server.close()
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["version"], answer["report"]) == ("watching", "8", 1)


def test_the_snippet_runs() -> None:
    names = run_block("retraining.md", "Probation(")
    probation = names["probation"]
    assert isinstance(probation, Probation)
    assert probation.status() is None
