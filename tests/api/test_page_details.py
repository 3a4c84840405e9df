# SPDX-License-Identifier: Apache-2.0
"""The pages beside the main one: a version, two versions, all versions, the session, the API."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from support.page_story import Story

from fl_app.api import create_trigger_api
from fl_app.api.page import overview
from fl_app.api.page.overview import RegistryReader
from fl_app.events import RejectedReply
from fl_app.progress import SessionProgress
from fl_registry import ArtifactError, FederatedLearningTracker, ModelManager, StoreUnavailable
from fl_registry.files.weights import save_weights

PNG = b"\x89PNG\r\n\x1a\n-a-picture"


@pytest.fixture
def client(story: Story) -> FlaskClient:
    return create_trigger_api(story.manager, store=story.store, now=story.time).test_client()


def told(client: FlaskClient, path: str) -> str:
    reply = client.get(path)
    assert reply.status_code == 200, reply.get_data(as_text=True)
    text = re.sub(r"<[^>]+>", " ", reply.get_data(as_text=True))
    return html.unescape(re.sub(r"\s+", " ", text))


def move(client: FlaskClient, version: str, how: str, **more: str) -> str:
    page = client.get("/").get_data(as_text=True)
    hidden = dict(re.findall(r'<input type="hidden" name="(form|once)" value="([0-9a-f]+)">', page))
    given = {**hidden, "version": version, "move": how, "by": "Ada", "note": "so", **more}
    assert client.post("/page/move", data=given).status_code == 303
    found = re.search(r'<p class="message \w+"[^>]*>(.*?)</p>', client.get("/").text, re.DOTALL)
    assert found is not None
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", found.group(1))).strip()


def moves_offered(client: FlaskClient, version: str) -> list[str]:
    page = client.get(f"/page/version?version={version}").get_data(as_text=True)
    return re.findall(r'name="move" value="(\w+)"', page)


def test_each_version_offers_the_moves_that_the_registry_allows(
    client: FlaskClient, story: Story
) -> None:
    assert moves_offered(client, "24") == ["approve", "reject"]
    assert moves_offered(client, "8") == []  # it leaves Production when another one comes
    assert moves_offered(client, "15") == ["rollback", "restore"]
    assert moves_offered(client, "20") == ["restore"]
    assert moves_offered(client, "1") == ["promote", "stage", "archive"]
    for version, how, stage in (
        ("1", "archive", "Archived"),
        ("1", "restore", "Staging"),
        ("1", "promote", "Production"),
        ("2", "stage", "Staging"),
        ("15", "rollback", "Production"),
    ):
        assert move(client, version, how).startswith("Done."), (version, how)
        assert story.store.get_version(version).stage == stage
        assert (story.store.history()[-1].actor, story.store.history()[-1].reason) == ("Ada", "so")
    assert move(client, "15", "archive").startswith("Not done. Version 15")


def test_a_version_s_page_has_its_facts_its_pictures_and_its_card(
    client: FlaskClient, story: Story
) -> None:
    story.store.backend.run_contents["run-3"] = {"drift.png": PNG, "x.html": b"<script>"}
    story.store.set_version_tags(
        "24",
        {
            "rejected": '[{"node_id":"7","phase":"train","reason":'
            '"it sent no answer in time","in_a_row":2}]',
            "parent_version": "8",
        },
    )
    page = told(client, "/page/version?version=24")
    for part in (
        "mAP50 0.8723",
        "round 8 of session 3",
        "version 8",
        "1 206 not reported",
        "it sent no answer in time",
        "drift.png",
        "run run-3",
        "to Staging 20 policy",
    ):
        assert part in page, part
    assert "x.html" not in page
    picture = client.get("/page/picture?version=24&name=drift.png")
    assert (picture.status_code, picture.mimetype, picture.data) == (200, "image/png", PNG)
    assert picture.headers["Content-Security-Policy"] == "default-src 'none'"
    story.store.backend.run_contents["run-3"]["drift.png"] = b"<script>"
    for name in ("drift.png", "x.html", "no.png", "../drift.png"):
        assert client.get(f"/page/picture?version=24&name={name}").status_code in (404, 409)
    card = client.get("/page/card?version=24")
    assert card.mimetype == "text/markdown"
    assert "# fl-global-model, version 24" in card.get_data(as_text=True)


def test_two_versions_are_beside_one_another(client: FlaskClient, story: Story) -> None:
    for run in ("run-1", "run-3"):
        story.store.backend.run_contents[run] = {"predictions.png": PNG, f"{run}.png": PNG}
    page = told(client, "/page/compare?first=8&second=24")
    for part in (
        "mAP50 0.7512 0.8723 +0.1211",
        "1 206 206",
        "They have the same arrays",
        "predictions.png version 8 version 24",
        "too few shared examples",
    ):
        assert part in page, part
    assert "run-1.png" not in page
    assert client.get("/page/compare?first=8&second=99").status_code == 404
    assert client.get("/page/compare?first=8&second=x").status_code == 404


def test_versions_are_filtered_sorted_and_in_parts(client: FlaskClient, story: Story) -> None:
    def shown(query: str) -> list[str]:
        page = client.get(f"/page/versions?{query}").get_data(as_text=True)
        return re.findall(r'<th scope="row"><a href="/page/version\?version=(\d+)', page)

    assert shown("")[:3] == ["24", "23", "22"]
    assert shown("sort=oldest")[:3] == ["1", "2", "3"]
    assert shown("sort=best")[:2] == ["24", "23"]
    assert shown("sort=worst")[:2] == ["1", "2"]
    assert shown("stage=Staging&since=") == ["24"]
    assert shown("since=2026-11-22")[-1] == "17"
    for number in range(40):
        story.save(5, number, 0.5)
    assert len(shown("")) == 50
    assert shown("page=2")[-1] == "1"
    assert len(shown("page=2")) == 14
    assert "no more versions" in told(client, "/page/versions?page=9")
    assert "no version like that" in told(client, "/page/versions?since=2030-01-01")
    for wrong in ("page=0", "sort=x", "stage=x", "since=yesterday"):
        assert client.get(f"/page/versions?{wrong}").status_code == 400


def test_the_session_under_way_is_shown_and_in_the_status(story: Story) -> None:
    now = story.time()
    bad = RejectedReply("77", "train", "its arrays are <b>others</b>", 3)
    live = SessionProgress(
        "s", num_rounds=8, round=3, phase="train", requested=12, answered=9, nodes=("5", "6"),
        rejected=(bad,), round_seconds=100.0, started=now, round_started=now, written=now,
    )  # fmt: skip
    given: dict[str, Any] = {"store": story.store, "now": story.time}
    client = create_trigger_api(story.manager, live=lambda: live, **given).test_client()
    for path in ("/", "/page/live"):
        page = told(client, path)
        for part in (
            "The nodes train in round 3 of 8",
            "about 10 min",
            "9 of 12 answered: 5, 6",
            "77 train 3 its arrays are <b>others</b>",
        ):
            assert part in page, part
    session = client.get("/status").get_json()["session"]
    assert (session["round"], session["seconds_left"], session["silent"]) == (3, 600.0, False)
    assert session["rejected"][0]["reason"] == bad.reason
    story.clock.advance(minutes=2)
    assert "No sign of life" in told(client, "/")
    assert client.get("/status").get_json()["session"]["silent"] is True


def test_nothing_is_claimed_while_mlflow_is_down(
    client: FlaskClient, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("MLflow does not answer; start it.")

    for name in ("history", "list_versions", "get_version", "get_latest_version", "ping"):
        monkeypatch.setattr(story.store, name, down)
    page = told(client, "/")
    assert "MLflow does not answer; start it." in page
    assert page.count("Unknown.") == 3
    for lie in (
        "Nothing is in",
        "Nothing was in",
        "nothing to draw",
        "no version yet",
        "Nothing has been moved",
        "It verifies",
    ):
        assert lie not in page
    for path in ("version?version=24", "compare?first=8&second=24", "versions"):
        assert client.get(f"/page/{path}").status_code == 503
    assert client.get("/page/live").status_code == 200
    assert client.get("/health").get_json()["status"] == "degraded"


def test_a_visit_reads_the_registry_once_and_draws_an_equal_chart_once(
    client: FlaskClient, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, drawn = [], []
    plain, svg = (
        story.store.list_versions,
        overview.svg,
    )
    monkeypatch.setattr(story.store, "list_versions", lambda **k: reads.append(1) or plain(**k))
    monkeypatch.setattr(overview, "svg", lambda *a: drawn.append(1) or svg(*a))
    for _ in range(3):
        page = client.get("/").get_data(as_text=True)
        (picture,) = re.findall(r'<img class="chart" src="([^"]*)"', page)
        assert client.get(html.unescape(picture)).status_code == 200
    assert (len(reads), len(drawn)) == (3, 1)
    story.save(4, 1, 0.9)
    page = client.get("/").get_data(as_text=True)
    (picture,) = re.findall(r'<img class="chart" src="([^"]*)"', page)
    client.get(html.unescape(picture))
    assert (len(reads), len(drawn)) == (4, 2)


def test_older_versions_are_read_once_and_drawn_as_they_are(story: Story) -> None:
    store = story.store
    for number in range(400):
        story.save(4, number, number / 500)
    app = create_trigger_api(story.manager, store=store)
    reader: RegistryReader = app.extensions["fl_app_reader"]
    asked: list[Any] = []
    plain = store.list_versions

    def listed(**given: Any) -> Any:
        asked.append(given.get("before"))
        return plain(**given)

    store.list_versions = listed  # type: ignore[method-assign]
    charts = [reader.read().chart("") for _ in range(2)]
    assert asked == [None, 200, None]
    assert charts[0] == charts[1]
    assert charts[0] is not None
    assert [point.version for point in charts[0].points] == [str(n) for n in range(1, 425)]


def test_the_api_is_a_page_with_every_route(client: FlaskClient) -> None:
    page = told(client, "/docs")
    document = client.get("/openapi.json").get_json()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in page
    assert "curl -H 'Content-Type: application/json' -d '{\"accuracy\": 0.87" in page


def test_the_pictures_of_a_run_are_found_in_mlflow(tmp_path: Path) -> None:
    tracker = FederatedLearningTracker(home=tmp_path)
    with tracker:
        for name in ("drift.png", "notes.txt"):
            (tmp_path / name).write_bytes(PNG)
            tracker.log_artifact(tmp_path / name)
        tracker.log_artifact(tmp_path / "drift.png", "below")
    weights = tmp_path / "w.safetensors"
    save_weights({"w": np.ones(3, np.float32)}, weights)
    store = ModelManager(home=tmp_path)
    assert tracker.run is not None
    store.save_model_version(weights, tracker.run.info.run_id)
    store.save_model_version(weights, "a-run-that-is-none-of-mlflow-s")
    assert (store.pictures("1"), store.pictures("2")) == (("drift.png",), ())
    assert store.picture("1", "drift.png") == PNG
    for name in ("notes.txt", "below/drift.png", "other.png"):
        with pytest.raises(ArtifactError, match="has no picture"):
            store.picture("1", name)
    store.promote_to_production("1")
    assert store.models() == {"fl-global-model": {"production": "1"}}


def test_links_of_an_mlflow_server_name_no_password(tmp_path: Path) -> None:
    store = ModelManager("http://ada:secret@mlflow.example:5000/front/", "a model", home=tmp_path)
    assert store.backend.links("3", "abc") == {
        "version": "http://mlflow.example:5000/front/#/models/a%20model/versions/3",
        "run": "http://mlflow.example:5000/front/#/runs/abc",
    }
    assert ModelManager(f"sqlite:///{tmp_path}/m.db", home=tmp_path).backend.links("3", "abc") == {}
