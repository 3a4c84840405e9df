# SPDX-License-Identifier: Apache-2.0
"""The status page: who gets in, what forms may do, and that text from outside stays text."""

from __future__ import annotations

import html
import io
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from support.api_client import TOKEN, Client
from support.page_story import Story

from fl_app.api import create_trigger_api, serve_api
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore, StoreUnavailable
from fl_registry.files.weights import save_weights

ROOT = Path(__file__).parents[2]
FORM = "application/x-www-form-urlencoded"
CHANGES = ["sign-out", "decide", "rollback", "trigger"]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}\u202e\x00&amp;"


@pytest.fixture
def visitor(story: Story) -> FlaskClient:
    app = create_trigger_api(story.manager, store=story.store, token=TOKEN, now=story.time)
    return app.test_client()


@pytest.fixture
def person(visitor: FlaskClient) -> FlaskClient:
    """A visitor who has signed in."""
    send(visitor, "sign-in", token=TOKEN)
    return visitor


def look(client: FlaskClient, path: str = "/") -> str:
    reply = client.get(path)
    assert reply.status_code == 200
    assert reply.mimetype == "text/html"
    return reply.get_data(as_text=True)


def send(client: FlaskClient, what: str, *, page: str = "", **fields: str) -> str:
    """Send the form of a page (of a new one by default); return what the page says then."""
    shown = page or look(client)
    hidden = re.findall(r'<input type="hidden" name="(form|once)" value="([0-9a-f]+)">', shown)
    given = {**dict(hidden), **fields}
    if what in ("sign-in", "sign-out"):
        given.pop("once", None)
    reply = client.post(f"/page/{what}", data=given)
    assert reply.status_code == 303
    assert reply.location == "/"
    return message(look(client))


def message(page: str) -> str:
    found = re.search(r'<p class="message \w+"[^>]*>\s*(.*?)</p>', page, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", found.group(1))) if found else ""


def test_without_the_cookie_there_is_only_the_sign_in(visitor: FlaskClient) -> None:
    page = look(visitor)
    assert 'action="/page/sign-in"' in page
    for secret in ("Version", "mAP50", "Ada", "/page/decide", "<table"):
        assert secret not in page
    for path in CHANGES:
        assert "signed out" in send(visitor, path)
    bearer = visitor.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert 'action="/page/sign-in"' in bearer.get_data(as_text=True)


@pytest.mark.parametrize("wrong", ["", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "ä" * 24])
def test_a_wrong_token_signs_nobody_in(visitor: FlaskClient, wrong: str) -> None:
    assert send(visitor, "sign-in", token=wrong) == "Not done. That is no token of this server."
    assert "<table" not in look(visitor)


def test_the_cookie_holds_no_token_and_is_kept_from_scripts_and_other_sites(
    visitor: FlaskClient,
) -> None:
    page = look(visitor)
    form = re.findall(r'name="form" value="([0-9a-f]+)"', page)[0]
    reply = visitor.post(
        "/page/sign-in",
        data={"form": form, "token": f" {TOKEN}\n"},
        headers={"Origin": "https://localhost"},
    )
    cookie = reply.headers["Set-Cookie"]
    assert TOKEN not in cookie
    for mark in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/", "Expires="):
        assert mark in cookie
    assert TOKEN not in look(visitor)
    other = look(visitor, "http://localhost:8080/")
    assert 'action="/page/sign-in"' in other  # each port has a cookie of its own


def test_a_cookie_ends_after_eight_hours_and_with_signing_out(
    person: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "<table" in look(person)
    copy = person.get_cookie("fl_app")
    assert copy is not None
    now = time.time()
    with monkeypatch.context() as patch:
        for late in (-60, 60):
            patch.setattr(time, "time", lambda late=late: now + 8 * 3600 + late)
            assert ("<table" in look(person)) == (late < 0)
    person.set_cookie("fl_app", copy.value)
    assert "signed out" in send(person, "sign-out")
    person.set_cookie("fl_app", copy.value)
    assert "<table" not in look(person)


def test_a_forged_cookie_or_one_of_another_server_is_none(
    person: FlaskClient, story: Story
) -> None:
    cookie = person.get_cookie("fl_app")
    assert cookie is not None
    body, _, signature = cookie.value.rpartition(".")
    flipped = ("A" if cookie.value[0] != "A" else "B") + cookie.value[1:]
    other = create_trigger_api(story.manager, token=TOKEN).test_client()
    for client, value in (
        (person, flipped),
        (person, f"{body}.{signature[::-1]}"),
        (person, body),
        (person, "x" * 5000),
        (other, cookie.value),
    ):
        client.set_cookie("fl_app", value)
        assert "<table" not in look(client)


@pytest.mark.parametrize("path", CHANGES)
def test_a_form_without_this_visitor_s_own_token_changes_nothing(
    person: FlaskClient, story: Story, path: str
) -> None:
    before = story.store.history(), story.manager.trigger_history
    for form in ("", "form=", f"form={'0' * 32}"):
        assert person.post(f"/page/{path}", data=form, content_type=FORM).status_code == 303
        assert "older than this server" in message(look(person))
    assert "<table" in look(person)
    assert before == (story.store.history(), story.manager.trigger_history)


@pytest.mark.parametrize("path", ["sign-in", *CHANGES])
def test_the_api_s_rules_hold_for_forms_too(person: FlaskClient, story: Story, path: str) -> None:
    def status(data: Any = None, **headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = sent.pop("Content-Type", FORM)
        return person.post(f"/page/{path}", data=data, headers=sent, content_type=kind).status_code

    before = story.store.history(), story.manager.trigger_history
    assert status(Host="evil.example") == 403
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        assert status(Origin=origin) == 403
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        assert status(Content_Type=kind) == 415
    assert status(Content_Encoding="gzip") == 415
    assert status("a" * 70_000) == 413
    assert status("form=x&form=y") == 400
    assert status("form=x&surprise=y") == 400
    assert person.get(f"/page/{path}").status_code == 405
    assert person.post(f"/page/{path}?a=b", data={}).status_code == 400
    assert before == (story.store.history(), story.manager.trigger_history)


def test_errors_of_the_page_are_pages_for_people(person: FlaskClient) -> None:
    reply = person.post("/page/decide", data="form=x&form=y", content_type=FORM)
    assert reply.mimetype == "text/html"
    assert "one twice" in reply.get_data(as_text=True)
    assert person.get("/?surprise=1").mimetype == "text/html"
    assert person.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_the_page_loads_nothing_but_its_own_style_and_icon(person: FlaskClient) -> None:
    reply = person.get("/")
    policy = reply.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "style-src 'self'", "form-action 'self'"):
        assert rule in policy
    assert "script-src 'self';" in policy
    for rule in ("unsafe", "*", "data:", "http:"):
        assert rule not in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["Cache-Control"] == "no-store"
    page = reply.get_data(as_text=True)
    links = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in links)
    assert re.findall("<script[^>]*>", page) == ['<script src="/page/live.js" defer>']
    assert not re.search(" style=| on[a-z]+=", page)
    ours = set(re.findall(r' id="([^"]+)"', page))
    assert {link[1:] for link in links if link.startswith("#")} <= ours
    assert len(re.findall(r' id="', page)) == len(ours)
    assert person.get("/page/style.css").mimetype == "text/css"
    assert "http" not in person.get("/page/style.css").get_data(as_text=True)
    assert person.get("/page/icon.svg").mimetype == "image/svg+xml"
    api = person.get("/status", headers={"Authorization": f"Bearer {TOKEN}"})
    assert api.headers["Content-Security-Policy"] == "default-src 'none'"
    assert "Set-Cookie" not in api.headers
    assert person.get("/status").status_code == 401  # the cookie opens the page and nothing else


def test_it_tells_what_is_where_since_when_by_whom_and_why(person: FlaskClient) -> None:
    page = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", look(person))))
    for told in (
        "Production Version 8 mAP50 0.7512 Since 2026-11-22 13:23 UTC , by Grace Hopper",
        "misses ships in this morning's fog",
        "Staging Version 24 mAP50 0.8723",
        "In Production before Version 15 mAP50 0.8106",
        "Version 24 waits for approval",
        "from 2 nodes with 413 examples",
        "manual",
        "only 0.6 hours since the last retraining",
        "brightness 8,212 0.31 lower 2",
        "No alarm. The mean evidence is 1,386; the alarm threshold is 105,120.",
        "It verifies. 9 entries were checked, those of full pages once since this server began",
        "mAP50 of 24 versions in 3 sessions",
    ):
        assert told in page, told


def test_approving_and_rejecting_is_written_down_with_name_and_note(
    person: FlaskClient, story: Story
) -> None:
    given = {"version": "24", "by": "Ada Lovelace", "note": "sees every ship"}
    assert "Choose to approve" in send(person, "decide", **given)
    assert "Write your name" in send(person, "decide", **{**given, "by": " "}, decision="approve")
    assert send(person, "decide", **given, decision="approve") == (
        "Done. Version 24 is approved and in Production now."
    )
    entry = story.store.history()[-1]
    assert (entry.op, entry.version, entry.actor) == ("promote", "24", "Ada Lovelace")
    assert entry.reason == "sees every ship"
    page = look(person)
    assert "waits for approval" not in page
    assert 'value="Ada Lovelace"' in page
    waiting = story.save(4, 1, 0.9)
    story.store.promote_to_staging(waiting)
    story.store.set_version_tags(waiting, {"approval": "pending"})
    said = send(person, "decide", version=waiting, by="Ada", note="no", decision="reject")
    assert said == f"Done. Version {waiting} is rejected and archived."
    assert story.store.get_version(waiting).stage == "Archived"
    again = send(person, "decide", version=waiting, by="Ada", note="", decision="approve")
    assert again.startswith(f"Not done. Version {waiting} does not wait for approval")


def test_a_form_that_is_sent_twice_is_done_once(person: FlaskClient, story: Story) -> None:
    page = look(person)
    given = {"version": "15", "by": "Ada", "note": "", "confirmed": "yes"}
    for _ in range(2):
        assert "Version 15 is back" in send(person, "rollback", page=page, **given)
    assert [e.version for e in story.store.history() if e.op == "rollback"] == ["8", "15"]
    said = send(person, "rollback", page=page, **{**given, "version": "8"})
    assert said == "Not done. That form was sent before with other content; look at what it did."
    assert story.store.get_latest_version("Production") == "15"
    page, before = look(person), len(story.manager.trigger_history)
    for _ in range(2):
        assert "is requested" in send(person, "trigger", page=page, reason="x", by="Ada")
    assert len(story.manager.trigger_history) == before + 1


def test_rolling_back_needs_a_tick_and_a_version_that_was_in_production(
    person: FlaskClient, story: Story
) -> None:
    given = {"version": "15", "by": "Ada", "note": "worse at night"}
    assert "Tick the box" in send(person, "rollback", **given)
    assert "Not done" in send(person, "rollback", **{**given, "version": "3"}, confirmed="yes")
    assert "Not done" in send(person, "rollback", **{**given, "version": "x"}, confirmed="yes")
    assert story.store.get_latest_version("Production") == "8"
    assert "is back in Production" in send(person, "rollback", **given, confirmed="yes")
    entry = story.store.history()[-1]
    assert (entry.version, entry.displaced, entry.reason) == ("15", "8", "worse at night")


def test_asking_for_retraining_is_written_down_and_joins_what_waits(
    person: FlaskClient, story: Story
) -> None:
    assert "Write why" in send(person, "trigger", reason="", by="Ada")
    assert "at most 500" in send(person, "trigger", reason="x" * 501, by="Ada")
    said = send(person, "trigger", reason="a new harbour", by="Ada")
    assert said == "Done. Retraining is requested. It joins the pending request."
    assert story.manager.trigger_history[-1]["reason"] == "a new harbour (requested by Ada)"
    request = story.manager.take()
    assert request is not None
    with story.manager.running(request):
        assert "running" in look(person)
        assert send(person, "trigger", reason="more", by="Ada") == "Done. Retraining is requested."


def test_text_from_outside_is_shown_as_text(
    person: FlaskClient, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = story.save(4, 1, 0.9, reason=HOSTILE.replace("\x00", ""), nodes=HOSTILE[:9])
    story.store.promote_to_staging(version, actor=HOSTILE, reason=HOSTILE)
    story.store.set_version_tags(version, {"approval": "pending", "round": HOSTILE[:20]})
    story.store.promote_to_production(version, actor=HOSTILE, reason=HOSTILE)
    send(person, "trigger", reason=HOSTILE, by=HOSTILE[:60])
    for path in ("/", "/?metric=%3Cscript%3E"):
        page = look(person, path)
        assert not re.search(r'<script(?! src="/page)|<img (?!class="chart")', page)
        assert "onerror=alert(2)>" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "{{ 7*7 }}" in page
        assert "49\\u202e" not in page
        assert "\u202e" not in page
        assert "\\u202e" in page
        assert "\x00" not in page


def test_versions_saved_by_hand_have_a_score_a_reason_and_an_author(
    manager: RetrainingManager, tmp_path: Path
) -> None:
    store = InMemoryModelStore()
    for number in (1, 2):
        path = tmp_path / f"{number}.safetensors"
        save_weights({"w": np.full(3, number, np.float32)}, path)
        store.save_model_version(path, metrics={"accuracy": 0.85, "F1": 0.4, "loss": number})
    store.promote_to_production("1", actor="Ada", reason="good enough")
    page = re.sub(r"\s+", " ", look(create_trigger_api(manager, store=store).test_client()))
    table = page.partition('id="versions-table"')[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [(row[1], row[-1]) for row in rows] == [
        ("accuracy 0.8500", ""),
        ("accuracy 0.8500", "good enough (by Ada)"),
    ]
    assert "accuracy by round" in page


def test_an_empty_registry_and_an_empty_mailbox_are_told_as_that(
    manager: RetrainingManager,
) -> None:
    client = create_trigger_api(manager, store=InMemoryModelStore()).test_client()
    page = re.sub(r"\s+", " ", look(client))
    for told in (
        "Nothing is in Production. `flwr run . --stream` trains versions",
        "Nothing is in Staging. The best version of a session comes here",
        "Nothing was in Production before. After the next promotion",
        "There is nothing to draw yet",
        "There is no version yet.",
        "No retraining was requested yet.",
        "No node has reported new data yet.",
        "Nothing has been moved yet.",
    ):
        assert told in page
    assert "It verifies" not in page
    assert 'action="/page/rollback"' not in page
    assert "Sign out" not in page  # without a token everybody on this machine may
    assert send(client, "trigger", reason="first", by="Ada") == "Done. Retraining is requested."
    assert message(look(client)) == ""  # once


def test_without_a_registry_there_is_the_monitor_alone(manager: RetrainingManager) -> None:
    client = create_trigger_api(manager).test_client()
    page = look(client)
    assert "Ledger" not in page
    assert "Request retraining" in page
    assert client.post("/page/decide", data={}).status_code == 404


def test_hundreds_of_versions_and_entries_are_bounded_with_a_hint(
    person: FlaskClient, story: Story
) -> None:
    for number in range(300):
        version = story.save(5, number, 0.5 + number / 1000)
        if number % 3 == 0:
            story.store.promote_to_staging(version, reason=f"number {number}")
    for number in range(60):
        story.manager.manual_trigger(f"wish {number}")
    page = re.sub(r"\s+", " ", look(person))
    assert "newest first; 50 of 324 (<code>fl-app versions" in page
    assert "mAP50 of 324 versions" in page
    assert "newest first; 50 of 109" in page
    assert "newest first; 30 of 64 (<code>fl-app history" in page
    assert page.count("<tr>") == 200 + 50 + 30 + 50 + 6 + 5  # rows of the tables, and their heads
    assert len(page) < 300_000


@pytest.mark.parametrize("place", [1, 4, 8])
def test_an_altered_entry_of_the_ledger_is_a_fault_and_no_crash(
    person: FlaskClient, story: Story, place: int
) -> None:
    story.store.backend.journal.texts[place] = story.store.backend.journal.texts[place].replace(
        "policy", "pol1cy"
    )
    story.store.backend.journal.texts[place] = story.store.backend.journal.texts[place].replace(
        "Hopper", "Hoppe!"
    )
    story.store.backend.journal.texts[place] = story.store.backend.journal.texts[place].replace(
        "Lovelace", "Lovelac!"
    )
    page = re.sub(r"\s+", " ", look(person))
    assert f"Entry {place + 1} of the journal was changed from outside" in page
    assert "It does not verify." in page
    assert "The entries before the fault, newest first" in page
    assert len(re.findall(r'<th scope="row">\d+</th>\s*<td[^>]*><time', page)) == place
    assert "Unknown." in page
    assert "new pictures from the north camera" in page
    said = send(person, "decide", version="24", by="Ada", note="", decision="approve")
    assert said.startswith("Not done. Entry")


def test_a_registry_that_fails_or_is_busy_leaves_the_rest_of_the_page(
    person: FlaskClient, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("MLflow at http://mlflow does not answer; start it.")

    with monkeypatch.context() as patch:
        patch.setattr(story.store, "history", down)
        page = look(person)
        assert "MLflow at http://mlflow does not answer; start it." in page
        assert "new pictures from the north camera" in page
        assert 'action="/page/trigger"' in page
    app = create_trigger_api(story.manager, store=story.store, registry_calls_at_once=0)
    assert "The registry is busy; try again." in look(app.test_client())


def test_a_memory_that_fails_leaves_the_registry_on_the_page(
    person: FlaskClient, story: Story
) -> None:
    with story.manager.store._database.engine.begin() as connection:
        connection.exec_driver_sql("drop table requests")
    page = look(person)
    assert "database does not answer" in page
    assert "Version 24 waits for approval" in page


def test_a_probation_and_what_came_of_it_are_told(person: FlaskClient, story: Story) -> None:
    def report(accuracy: float) -> None:
        sent = {"Authorization": f"Bearer {TOKEN}"}
        reply = person.post("/production_metrics", json={"accuracy": accuracy}, headers=sent)
        assert reply.status_code == 200

    def told() -> str:
        return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", look(person))))

    assert "Probation not watched" in told().replace("Probation", "Probation ")
    for _ in range(12):
        report(0.9)
    send(person, "decide", version="24", by="Ada", note="", decision="approve")
    assert "Probationwatched until" in told()
    report(0.9)
    report(0.5)
    assert "1 of 10 reports were all right, and the last 1 critical" in told()
    report(0.5)
    report(0.5)
    page = told()
    assert "Version 24 failed" in page
    assert "version 8 came back automatically." in page
    assert story.store.get_latest_version("Production") == "8"


def test_what_fails_while_the_run_goes_on_is_told(person: FlaskClient, story: Story) -> None:
    story.manager.health.fails("the outbox", "the disk is full")
    assert "the outbox fails, and the run goes on: the disk is full" in look(person)
    story.manager.health.works("the outbox")
    assert "the outbox" not in look(person)


def test_any_metric_can_be_drawn_and_an_unknown_one_is_not(person: FlaskClient) -> None:
    for query, metric in (("metric=train/loss", "train/loss"), ("metric=nothing", "mAP50")):
        page = look(person, f"/?{query}")
        assert f'alt="{metric} by round. {metric} of 24 versions' in page
        (picture,) = re.findall(r'<img class="chart" src="([^"]*)"', page)
        reply = person.get(html.unescape(picture))
        assert (reply.status_code, reply.mimetype) == (200, "image/svg+xml")
    for query in ("metric=a&metric=b", "theme=red"):
        assert person.get(f"/page/chart.svg?{query}").status_code == 400


def test_the_chart_is_for_who_is_signed_in_and_may_load_nothing(
    visitor: FlaskClient, story: Story
) -> None:
    assert visitor.get("/page/chart.svg").status_code == 403
    send(visitor, "sign-in", token=TOKEN)
    for theme in ("light", "dark"):
        reply = visitor.get(f"/page/chart.svg?theme={theme}")
        policy = reply.headers["Content-Security-Policy"]
        assert policy == "default-src 'none'; style-src 'unsafe-inline'"
        picture = reply.get_data(as_text=True)
        assert "<script" not in picture
        assert not re.findall(r'(?:href|src)="(?!#)', picture)
    empty = create_trigger_api(story.manager, store=InMemoryModelStore()).test_client()
    assert empty.get("/page/chart.svg").status_code == 404


def test_it_is_served_beside_the_api_and_slow_visits_are_few(story: Story) -> None:
    server = serve_api(create_trigger_api(story.manager, store=story.store), port=0)
    assert server is not None
    client = Client(server.port)
    assert b"Version 24 waits" in client.get("/").body
    assert client.ask("HEAD", "/").body == b""
    assert client.get("/health").status == 200
    server.close()


def test_another_process_s_monitor_is_read_from_its_memory(story: Story) -> None:
    reader = RetrainingManager(accuracy_threshold=0.2, store=story.manager.store)
    client = create_trigger_api(reader).test_client()
    assert "brightness" in look(client)
    story.manager.update_metrics(0.1234, 10)
    assert "0.1234" in look(client)
    assert client.get("/metrics").get_json()["current_accuracy"] == 0.1234
    assert client.get("/metrics").get_json()["accuracy_threshold"] == 0.05


def test_the_bundle_that_flower_runs_has_the_whole_page(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_files

    names = ["pyproject.toml", "README.md", "LICENSE"]
    folders = ["fl_app", "registry", "models", "docs"]
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    files = {str(p.relative_to(ROOT)): p for p in (*(ROOT / name for name in names), *paths)}
    bundle, _ = build_fab_from_files(files)
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(tmp_path / "app")
        assert not [name for name in archive.namelist() if name.endswith((".png", ".html", ".css"))]
    code = (
        "import fl_app, sys\n"
        "import fl_models, fl_registry\n"
        "from fl_app import RetrainingManager, create_trigger_api\n"
        "from fl_registry import InMemoryModelStore\n"
        "for package in (fl_app, fl_models, fl_registry):\n"
        "    assert package.__file__.startswith(sys.argv[1]), package.__file__\n"
        "api = create_trigger_api(RetrainingManager(), store=InMemoryModelStore())\n"
        "client = api.test_client()\n"
        "assert b'Nothing is in Production' in client.get('/').data\n"
        "assert b'color-scheme' in client.get('/page/style.css').data\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path / "app", check=True)
