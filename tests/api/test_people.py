# SPDX-License-Identifier: Apache-2.0
"""Tokens with a name and a role: what each may do, and what the journal says."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from support.api_client import TOKEN, versions
from typer.testing import CliRunner

from fl_app.api import create_trigger_api
from fl_app.api.people import PEOPLE_FILE, People, PeopleError
from fl_app.cli.main import app as cli
from fl_app.retraining import RetrainingManager
from fl_registry import InMemoryModelStore


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def ask(client: FlaskClient, token: str, path: str, **body: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"}
    reply = client.post(path, json=body, headers=headers)
    return reply.status_code, reply.get_data(as_text=True)


def test_the_name_of_a_token_goes_into_the_journal_and_readers_change_nothing(
    manager: RetrainingManager, tmp_path: Path, people: People
) -> None:
    store = versions(tmp_path)
    ada, bob = people.add("Ada Lovelace", "decide"), people.add("Bob", "read")
    client = create_trigger_api(manager, store=store, people=people).test_client()
    assert client.get("/status").status_code == 401
    assert client.get("/health").status_code == 200
    for token in (ada, bob):
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/status", headers=headers).status_code == 200
    status, text = ask(client, bob, "/versions/1/promote")
    assert status == 403
    assert "Bob may read and not decide" in text
    assert ask(client, bob, "/trigger_retrain", reason="x")[0] == 403
    assert ask(client, ada, "/versions/1/promote", by="Grace")[0] == 403
    assert store.history() == ()
    assert ask(client, ada, "/versions/1/promote", note="good")[0] == 200
    assert store.history()[-1].actor == "Ada Lovelace"
    assert ask(client, ada, "/trigger_retrain", reason="new data")[0] == 202
    assert manager.trigger_history[-1]["reason"] == "new data (requested by Ada Lovelace)"


def sign_in(client: FlaskClient, token: str) -> str:
    page = client.get("/").get_data(as_text=True)
    (form,) = re.findall(r'name="form" value="([0-9a-f]+)"', page)
    client.post("/page/sign-in", data={"form": form, "token": token})
    return client.get("/").get_data(as_text=True)


def test_on_the_page_too_and_a_revoked_token_stops_at_once(
    manager: RetrainingManager, tmp_path: Path, people: People
) -> None:
    store = versions(tmp_path)
    given = {"store": store, "people": people, "token": TOKEN}
    app = create_trigger_api(manager, **given)  # type: ignore[arg-type]
    ada, bob = app.test_client(), app.test_client()
    page = sign_in(ada, people.add("Ada", "decide"))
    assert "Ada (may decide)" in page
    assert 'name="by"' not in page
    hidden = re.search(
        r'name="form" value="([0-9a-f]+)">\s*<input type="hidden" name="once" '
        r'value="([0-9a-f]+)"',
        ada.get("/page/version?version=1").text,
    )
    assert hidden is not None
    form = {"form": hidden[1], "once": hidden[2], "version": "1", "move": "promote", "note": ""}
    assert ada.post("/page/move", data={**form, "by": "Grace"}).status_code == 403
    assert ada.post("/page/move", data=form).status_code == 303
    assert store.history()[-1].actor == "Ada"
    page = sign_in(bob, people.add("Bob", "read"))
    assert "Bob (may read)" in page
    assert not re.search('method="post" action="/page/(?!sign-out)', page)
    (own,) = set(re.findall(r'name="form" value="([0-9a-f]+)"', page))
    assert bob.post("/page/move", data={**form, "form": own}).status_code == 403
    assert "Your name" in sign_in(app.test_client(), TOKEN)  # the shared token has no name
    people.revoke("Bob")
    assert 'action="/page/sign-in"' in bob.get("/").get_data(as_text=True)
    assert "Ada (may decide)" in ada.get("/").get_data(as_text=True)


def test_after_the_last_one_is_revoked_a_token_is_still_needed(
    manager: RetrainingManager, people: People
) -> None:
    client = create_trigger_api(manager, store=InMemoryModelStore(), people=people).test_client()
    assert client.get("/status").status_code == 200  # nobody has a token yet
    token = people.add("Ada", "read")
    people.revoke("Ada")
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/status").status_code == 401
    assert client.get("/status", headers=headers).status_code == 401
    people.path.write_text("{")
    assert client.get("/status", headers=headers).status_code == 401


def test_only_the_hash_is_stored_and_only_for_the_owner(people: People) -> None:
    token = people.add("Ada", "decide")
    assert token not in people.path.read_text()
    assert stat.S_IMODE(people.path.stat().st_mode) == 0o600
    found = People(people.path.parent).find(token)
    assert found is not None
    assert (found.name, found.role) == ("Ada", "decide")
    assert people.find(token[:-1]) is None
    assert people.find("") is None
    for wrong in ("", " Ada", "a\nb", "x" * 101):
        with pytest.raises(PeopleError):
            people.add(wrong, "read")
    with pytest.raises(PeopleError, match="has a token"):
        people.add("Ada", "read")
    with pytest.raises(PeopleError, match="Nobody is called"):
        people.revoke("Eve")


def test_the_command_makes_lists_and_revokes(home: Path) -> None:
    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["people", *words])
        assert done.exit_code == code, done.output
        return done.stdout

    assert "fl-app people add" in run("list")
    token = run("add", "Ada", "--role", "read").strip()
    assert People(home).find(token) is not None
    assert "Ada" in run("list")
    assert token not in run("list", "--json")
    assert "read" in run("list", "--json")
    run("add", "Ada", code=1)
    run("revoke", "Ada")
    run("revoke", "Ada", code=1)
    assert People(home).find(token) is None
    assert (home / PEOPLE_FILE).exists()
