# SPDX-License-Identifier: Apache-2.0
"""Canaries in addresses, headers, files and the environment: none is ever seen again.

Not on the terminal, in the log, in an error or what led to it, in an answer of the API, in MLflow,
in a file of the app's folder, or among the arguments of a process.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from support.leaks import (
    ALL,
    CANARIES,
    IN_FILE,
    IN_PATH,
    IN_QUERY,
    PASSWORD,
    address,
    everything_of,
    files_with,
    found_in,
)
from support.local_grid import LocalGrid, add_one, model

from fl_app.api import create_trigger_api
from fl_app.cli import main
from fl_app.config import declared, params
from fl_app.hooks import Webhook
from fl_app.retraining import MonitorStore, RetrainingManager
from fl_app.server_app import main as server_main
from fl_app.strategy import LifecycleStrategy, RoundSettings, SessionSettings
from fl_registry import FederatedLearningTracker, ModelManager, RegistryError
from fl_registry.redaction import one_line, printable, redact

DEAD = "127.0.0.1:9"
Told = Callable[[], str]
pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, canary in CANARIES.items():
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_RETRIES", "1")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Told:
    """All that was printed and logged so far, down to the level DEBUG."""
    caplog.set_level(logging.DEBUG)
    # What urllib3 connects to, and the addresses in headers, are its own affair below WARNING.
    logging.getLogger("urllib3").setLevel(logging.WARNING)

    def all_of_it() -> str:
        printed = capfd.readouterr()
        return "\n".join((printed.out, printed.err, caplog.text))

    return all_of_it


class Chatty(BaseHTTPRequestHandler):
    """A server that is well, and repeats everything that it was told in its errors."""

    def answer(self) -> None:
        well = "/experiments/search" in self.path
        body = "{}"
        if not well:
            said = {"path": self.path, "headers": dict(self.headers)}
            body = json.dumps({"error_code": "INTERNAL_ERROR", "message": f"cannot serve {said}"})
        self.send_response(200 if well else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def chatty() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Chatty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "text",
    [
        f"cannot reach {address('http', 'host/path')} now",
        f"cannot reach http://{IN_QUERY}@host/ now",
        f"https://host/?access_token={IN_QUERY}&x=1 now",
        f"https://host/?X-Amz-Signature={IN_QUERY} now",
        f"https://host/?sig={IN_QUERY}&sv=1 now",
        f"DefaultEndpointsProtocol=https;AccountKey={IN_QUERY};x now",
        f"{{'api_key': '{IN_QUERY}'}} now",
        f'{{"password": "{IN_QUERY}"}} now',
        f"Authorization: Bearer {IN_QUERY} now",
        f"{{'Authorization': 'Basic {IN_QUERY}'}} now",
        f"sent bearer {IN_QUERY} now",
        f"postgresql://user:{IN_QUERY}@{IN_QUERY}:{IN_QUERY}@host/db now",
        f"password='{IN_QUERY} and {IN_QUERY}' now",
        f"access_token:{IN_QUERY} now",
        f"db_pass={IN_QUERY}&DBPASS2={IN_QUERY}&passkey={IN_QUERY} now",
        f"{{'X-Api-Key': '{IN_QUERY}', 'Cookie': 'a={IN_QUERY}; b={IN_QUERY}'}} now",
        f"invalid header value b'{CANARIES['MLFLOW_TRACKING_TOKEN']}\\n' now",
        f"the key is {CANARIES['AWS_SECRET_ACCESS_KEY']} now",
    ],
)
def test_secrets_of_each_form_are_hidden_and_the_rest_is_kept(text: str) -> None:
    assert found_in(redact(text)) == []
    assert redact(text).endswith(" now")


@pytest.mark.parametrize(
    "text",
    [
        "wrong password: check the user name, password or token.",
        "sqlite:////home/ada/mlflow.db",
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/create",
        "basic authentication failed",
        "mAP50 0.5 < 0.6, 3 of 7 keys",
        "the tokens of a sentence",
        '{"passed": true, "passes": 3}, bypassed=1',
        "http://host:5000/path?mail=ada@example.org",
        "give --token FILE, or set the token: it is read once",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_a_text_of_others_is_one_printable_line() -> None:
    assert printable("a\r\nb\x1b[2J\u202ec") == "a\\r\\nb\\x1b[2J\\u202ec"
    assert len(one_line("x" * 1000)) == 200


@pytest.mark.parametrize("name", ["OPENAI_KEY", "GITHUB_PAT", "AZURE_SAS", "GOOGLE_CREDENTIALS"])
def test_variables_whose_names_say_that_they_are_secret(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("it is correct-horse now") == "it is *** now"


@pytest.mark.parametrize(
    "part", ["token", "password='", "://a:", "cookie: ", "x-", "x-a-", "a_key_"]
)
def test_a_long_text_takes_no_time_that_grows_with_the_square(part: str) -> None:
    assert redact(part * 20_000)  # which would be minutes


COMMANDS = [
    ("versions",),
    ("status",),
    ("compare", "1", "2"),
    ("promote", "1", "--note", f"see {address('http', 'host')}"),
    ("approve", "1"),
    ("rollback",),
    ("prune",),
    ("doctor",),
    ("doctor", "--repair"),
]
BAD = [
    f"ftp://ada:{IN_QUERY}@host/x",
    f"http://ada:{IN_QUERY}@[bad/",
    f"http://{DEAD}/?token={IN_QUERY}",
    f"postgresql://ada:{IN_QUERY}@{DEAD}/db",
    f"mysql+pymysql://ada:{IN_QUERY}@{DEAD}/db",
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_tells_the_password_of_mlflow(
    words: tuple[str, ...], chatty: str, told: Told, home: Path
) -> None:
    for uri in (address("http", DEAD), address("http", chatty), *BAD):
        ended(*words, "--tracking-uri", uri)
    said = told()
    assert found_in(said) == []
    assert "Traceback" not in said
    assert files_with(home) == []


@pytest.mark.parametrize(
    "url",
    [
        address("postgresql", f"{DEAD}/db"),
        address("postgresql+psycopg", f"{DEAD}:x/db"),
        address("nothing", DEAD),
        f"{PASSWORD}",
        f"sqlite:////proc/{IN_PATH}/x?password={IN_QUERY}",
    ],
)
def test_no_command_tells_the_password_of_the_monitor(url: str, told: Told, home: Path) -> None:
    for words in (("status",), ("history",), ("doctor",), ("trigger", "--reason", "r"), ("serve",)):
        ended(*words, "--monitor", url)
    said = told()
    assert found_in(said, set(ALL) - {IN_PATH}) == []
    assert "Traceback" not in said
    assert files_with(home) == []


def ended(*words: str) -> None:
    with pytest.raises(SystemExit):
        main.main(words)


def test_the_page_of_mlflow_is_opened_without_its_password_for_all_to_see(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], *, env: dict[str, str], check: bool) -> Any:
        started.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", start)
    ended("ui", "--tracking-uri", address("postgresql", f"{DEAD}/db"))
    ended("ui", "--tracking-uri", address("http", "host"))
    ((command, env),) = started
    assert found_in(" ".join(command)) == []
    assert found_in(env["MLFLOW_BACKEND_STORE_URI"]) == [PASSWORD]
    assert "http://ada:***@host" in (said := told())
    assert found_in(said) == []


@pytest.mark.parametrize("token", ["x\n", CANARIES["MLFLOW_TRACKING_TOKEN"] + "\n", "ü" + IN_QUERY])
def test_a_token_that_cannot_be_sent_is_not_told(
    token: str, chatty: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    for ask in (
        ModelManager(f"http://{chatty}").list_all_versions,
        lambda: FederatedLearningTracker(f"http://{chatty}").start_run("r"),
    ):
        with pytest.raises(RegistryError) as caught:
            ask()
        assert found_in(everything_of(caught.value)) == []
    assert found_in(told()) == []


SETTINGS: list[dict[str, Any]] = [
    {"mlflow_tracking_uri": address("http", DEAD)},
    *({"mlflow_tracking_uri": uri} for uri in BAD),
    {"monitor_database_url": address("postgresql", f"{DEAD}/db")},
    {"monitor_database_url": address("bogus", DEAD)},
    {"continuous": True, "api_token_file": IN_PATH},
    {"continuous": True, "api_host": "::", "api_token_file": f"/nowhere/{IN_PATH}"},
    {"webhook_url": f"https://127.0.0.1/{IN_PATH}?token={IN_QUERY}"},
    {"webhook_url": address("https", "hooks.example.org")},
    {"webhook_url": f"https://[{IN_PATH}"},
    {"webhook_url": f"http://hooks.example.org/{IN_PATH}"},
    {"webhook_url": "https://hooks.example.org/", "webhook_secret_file": IN_PATH},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_a_server_that_cannot_start_tells_no_secret(
    settings: dict[str, Any], told: Told, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {k.replace("_", "-"): v for k, v in settings.items()}
    config = {**params({}), "home": str(home), **given}
    context = Context(7, 0, {}, RecordDict(), config)
    with pytest.raises(Exception, match=r".") as caught:
        server_main(LocalGrid(add_one), context)
    assert found_in(everything_of(caught.value)) == []
    assert found_in(told()) == []
    assert files_with(home) == []


def test_settings_that_lead_to_a_secret_are_not_logged() -> None:
    telling = ("uri", "url", "token", "secret", "password", "key")
    private = {key for key, setting in declared().items() if setting.key.private}
    names = declared().keys()
    assert {n for n in names if any(part in n.split("-") for part in telling)} == private
    assert params({}).keys() == names - private


def test_a_session_in_which_all_fails_keeps_no_secret(
    home: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Params, tags, hooks, pictures, the holdout, the store: each has or raises a canary."""
    leak = f"cannot reach {address('https', 'host', query=f'/?token={IN_QUERY}')}"

    def fails(*_: object) -> Any:
        raise OSError(leak)

    def score(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 2:
            raise ConnectionError(leak)
        return MetricRecord({"accuracy": 0.5})

    store = ModelManager(home=home)
    monitor = RetrainingManager(store=MonitorStore(f"sqlite:///{home / 'monitor.db'}"))
    monitor.manual_trigger(leak)
    strategy = LifecycleStrategy(
        metric="accuracy",
        store=store,
        tracker=FederatedLearningTracker(home=home),
        monitor=monitor,
        hooks=[
            fails,
            Webhook(f"https://{DEAD}/{IN_PATH}", IN_FILE * 2, hosts=["127.0.0.1"], pauses=()),
        ],
        artifacts=[fails],
        session=SessionSettings(
            params={"database": address("postgresql", "host/db"), "note": leak, "api_key": IN_QUERY}
        ),
        home=home,
        rounds=RoundSettings(pipeline=False),
    )
    with pytest.raises(Exception, match="cannot reach"):
        strategy.start(LocalGrid(add_one), model(), num_rounds=2, evaluate_fn=score)
    store.promote_to_production("1", actor="ada", reason=leak)
    store.set_version_tags("1", {"why": leak})
    said = told()
    assert found_in(said.replace(leak, "")) == []  # what the user's own function raised is raised
    assert "https://ada:***@host" in "".join(entry.reason for entry in store.history())
    assert files_with(home) == []


def test_the_api_repeats_no_secret(home: Path, told: Told, tmp_path: Path) -> None:
    token = CANARIES["FL_APP_API_TOKEN"]
    home.mkdir()
    store = MonitorStore(f"sqlite:///{home / 'monitor.db'}")
    manager = RetrainingManager(store=store)
    app = create_trigger_api(manager, store=ModelManager(home=home), token=token)
    client, answers = app.test_client(), []
    for header in (f"Bearer {token}", f"Basic {token}", f"Bearer x{IN_QUERY}", token, ""):
        bearer = {"Authorization": header}
        for path in (
            "/health",
            "/status",
            "/versions",
            "/metrics",
            "/trigger_history",
            "/",
            f"/nowhere/{IN_QUERY}",
            "/openapi.json",
        ):
            answers.append(client.get(path, headers=bearer))
        for body in (
            {"reason": f"see {address('https', 'host')}"},
            {"reason": "r", "token": IN_QUERY},
            {"token": IN_QUERY},
            {"reason": {"password": IN_QUERY}},
        ):
            keyed = {**bearer, "Idempotency-Key": f"once-{len(answers)}"}
            answers.append(client.post("/trigger_retrain", json=body, headers=keyed))
            answers.append(client.post("/versions/1/promote", json=body, headers=bearer))
        answers.append(client.post("/page/sign-in", data={"token": IN_QUERY, "form": "x"}))
        answers.append(client.get(f"/status?token={IN_QUERY}", headers=bearer))
    said = b"\n".join(answer.data + str(answer.headers).encode() for answer in answers)
    assert {answer.status_code for answer in answers} >= {200, 202, 400, 401, 404}
    assert found_in(said) == []
    assert found_in(told()) == []
    assert files_with(home) == []


@pytest.mark.parametrize("content", ["short", f"{IN_FILE} {IN_FILE}", "ä" * 20, ""])
def test_a_token_file_that_cannot_be_used_is_told_without_what_is_in_it(
    content: str, told: Told, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    ended("serve", "--port", "0", "--token-file", str(file))
    ended("serve", "--port", "0", "--token-file", IN_PATH)
    said = told()
    assert "oken" in said
    assert found_in(said) == []
