# SPDX-License-Identifier: Apache-2.0
"""The webhook against real receivers: signed, tried again, bounded, and only where it may go."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.webhook_receiver import OK, Delivery, Receiver, no_waiting, receiving

from fl_app.events import RoundReport, StageMoved
from fl_app.hooks import Webhook
from fl_app.hooks import webhook as module
from fl_app.hooks.queue import Hooks
from fl_app.hooks.webhook import Target, is_public

SECRET = "canary-5d41402abc4b2a76b9719d911017c592"  # noqa: S105 - it guards nothing
REPORT = RoundReport(3, 8, {"mAP50": 0.5, "client/loss": float("nan")}, "7", run_id="ab12")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def webhook(receiver: Receiver, **settings: Any) -> Webhook:
    settings = {"hosts": ["127.0.0.1"], "pauses": no_waiting(), "timeout": 20.0, **settings}
    return Webhook(receiver.url(), SECRET, **settings)


def signature(delivery: Delivery, key: bytes) -> str:
    """What the specification says stands in ``webhook-signature``."""
    headers = delivery.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + delivery.body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def test_what_arrives_is_the_event_and_its_signature_verifies(receiver: Receiver) -> None:
    webhook(receiver, model="fish")(REPORT)
    (delivery,) = receiver.got
    assert delivery.path == "/hook?key=1"
    assert delivery.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert delivery.headers["content-type"] == "application/json"
    assert delivery.headers["webhook-signature"] == signature(delivery, SECRET.encode())
    assert abs(int(delivery.headers["webhook-timestamp"]) - time.time()) < 60
    told = delivery.json
    assert (told["type"], told["id"], told["model"]) == ("round.finished", REPORT.id, "fish")
    assert delivery.headers["webhook-id"] == REPORT.id == "ab12-round-3"
    assert told["data"]["metrics"] == {"mAP50": 0.5, "client/loss": None}
    assert datetime.fromisoformat(told["timestamp"]).utcoffset() == timedelta(0)


def test_the_signature_is_the_one_of_the_specification_s_example() -> None:
    key = module.read_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = module.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_it_is_delivered_once_after_errors_with_the_same_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with receiving((500, {}), (503, {}), (429, {"Retry-After": "0"})) as receiver:
        webhook(receiver)(REPORT)
        assert receiver.ids == [REPORT.id] * 4
        for delivery in receiver.got:
            assert delivery.headers["webhook-signature"] == signature(delivery, SECRET.encode())
    assert caplog.records == []


def test_it_gives_up_after_its_tries_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with receiving(*[(500, {})] * 9) as receiver:
        webhook(receiver, pauses=no_waiting(3))(REPORT)
        assert len(receiver.got) == 3
    assert "ab12-round-3 is dropped after attempt 3: it answers 500" in caplog.text


def test_its_waits_draw_nothing_from_python_s_global_generator() -> None:
    before = random.getstate()
    with receiving((500, {}), (503, {})) as receiver:
        webhook(receiver)(REPORT)
        assert len(receiver.got) == 3
    assert random.getstate() == before


@pytest.mark.parametrize("status", [400, 401, 404, 410, 501])
def test_what_will_not_get_better_is_not_tried_again(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving((status, {})) as receiver:
        webhook(receiver)(REPORT)
        assert len(receiver.got) == 1
    assert f"dropped after attempt 1: it answers {status}" in caplog.text


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving((status, {"Location": receiver.url()})) as first:
        webhook(first)(REPORT)
        assert len(first.got) == 1
    assert receiver.got == []
    assert "not followed" in caplog.text


def test_nobody_there_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    Webhook(f"http://127.0.0.1:{port}/", SECRET, hosts=["127.0.0.1"], pauses=(0.0,))(REPORT)
    assert "dropped after attempt 2: NewConnectionError" in caplog.text


def test_a_receiver_that_does_not_answer_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with receiving(held=True) as receiver:
        webhook(receiver, timeout=0.2, pauses=())(REPORT)
        assert len(receiver.got) == 1
    assert "ReadTimeoutError" in caplog.text


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("99999", module.MAX_PAUSE),
        ("-3", 0),
        ("soon", 0),
        ("", 0),
        ("٣", 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_understood_and_bounded(header: str, seconds: float) -> None:
    assert module._seconds(header) == seconds


@given(
    st.text()
    | st.from_regex(r"[A-Z][a-z]{2}, -?\d{1,20} [A-Z][a-z]{2} -?\d{1,20} \d+:\d+:-?\d+ \w*")
    | st.integers().map(str)
    | st.sampled_from(["9" * 5000, "1e9", "inf", "nan", "-1", " ", "Mon, 30 Nov 99999999999 0:0:0"])
)
def test_retry_after_of_any_form_is_some_seconds(header: str) -> None:
    assert 0 <= module._seconds(header) <= module.MAX_PAUSE


def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert module._seconds(format_datetime(later, usegmt=True)) == pytest.approx(100, abs=5)


def test_the_receiver_s_wish_goes_before_a_shorter_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with receiving((429, {"Retry-After": "9"}), (500, {})) as receiver:
        webhook(receiver, pauses=(2.0, 2.0))(REPORT)
        assert len(receiver.got) == 3
    assert waited[0] == 9
    assert 1.6 <= waited[1] <= 2.4


def test_a_dead_receiver_keeps_nobody_waiting_and_gets_all_in_order_later() -> None:
    moved = [
        StageMoved(n, "stage", str(n), None, "", "", None, str(n), f"id{n}", datetime.now(UTC))
        for n in range(5)
    ]
    with receiving(held=True) as receiver:
        hooks = Hooks([webhook(receiver)], seconds=0.0)
        for event in moved:
            hooks(event)
        hooks.flush()
        assert receiver.came.acquire(timeout=20)  # the first is there, and has no answer
        assert len(receiver.got) == 1
        receiver.hold.set()
        hooks.flush(20)
        assert receiver.ids == [event.id for event in moved]


def test_the_secret_and_the_path_are_in_no_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with receiving((500, {}), (302, {"Location": "/"})) as broken:
        for target in (receiver, broken):
            hook = webhook(target)
            hook.check()
            Hooks([hook]).flush()
            hook(REPORT)
            logging.getLogger("flwr.fl_app").info("%r %s", hook, hook)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("flwr")]
    assert ours
    assert SECRET not in caplog.text
    assert "key=1" not in "".join(ours)
    for delivery in (*receiver.got, *broken.got):
        assert SECRET.encode() not in delivery.body
        assert SECRET not in "".join(delivery.headers.values())


# Where it may go.


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.5]/",
        "https://10.0.0.5/",
        "https://169.254.169.254/latest",
        "https://0.0.0.0/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[64:ff9b::a00:5]/",
        "https://[64:ff9b:1::7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[fec0::1]/",
        "https://[4000::1]/",
        "https://224.0.0.1/",
        "https://0177.0.0.1/",
        "https://0/",
        "https://100.64.0.1/",
        "https://[::]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[::ffff:0:127.0.0.1]/",
        "https://[2002:7f00:1::]/",
        "https://[2002:a00:5::1]/",
        "https://[2001:0:7f00:1::]/",
        "https://[2001:0:808:808::80ff:fffe]/",
        "https://[64:ff9b::100.64.0.1]/",
        "https://[64:ff9b::169.254.169.254]/",
        "https://[2001:db8::1]/",
        "https://[3fff::1]/",
        "https://[ff02::1]/",
        "https://198.18.0.1/",
        "https://240.0.0.1/",
        "https://255.255.255.255/",
    ],
)
def test_an_address_that_is_not_public_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not a public address"):
        Webhook(url, SECRET)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_leads_to_this_machine_is_refused_when_it_is_looked_up(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Webhook(f"https://localhost:{receiver.port}/", SECRET, pauses=no_waiting())
    with pytest.raises(ValueError, match=r"'localhost' is at .* not a public"):
        hook.check()
    hook(REPORT)
    assert receiver.got == []
    assert "dropped after attempt 1" in caplog.text


def test_a_name_that_turns_to_a_private_address_later_is_not_followed_there(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter(["8.8.8.8", "127.0.0.1"])

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        family = socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    hook = Webhook("https://rebinding.example/", SECRET, pauses=no_waiting())
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hook.check()
    hook(REPORT)
    assert "is at 127.0.0.1, which is not a public address" in caplog.text


def test_a_host_that_cannot_be_found_is_only_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def resolve(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    hook = Webhook("https://hooks.example/", SECRET)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hook.check()
    assert "Webhook to hooks.example: the host cannot be resolved" in caplog.text


@pytest.mark.parametrize(
    ("url", "hosts", "said"),
    [
        ("https://other.example/", ["hooks.example"], "'other.example' is not among"),
        ("https://hooks.example.evil.org/", ["hooks.example"], "not among"),
        ("http://hooks.example/", [], "plain http"),
        ("ftp://hooks.example/", [], "starts with 'ftp'"),
        ("hooks.example/path", [], "starts with ''"),
        ("https:///path", [], "names no host"),
        ("https://hooks.example:99999/", [], "cannot be read"),
        ("https://[::1/", [], "cannot be read"),
        ("https://ada:pw@hooks.example/", [], "user or password"),
        ("https://hooks.example/a b", [], "characters"),
        ("https://hooks.example/\r\nHost: x", [], "characters"),
        ("https://höoks.example/", [], "characters"),
        ("https://hooks.example/", ["https://hooks.example"], "is not a host; expected names"),
    ],
)
def test_wrong_urls_and_hosts_get_one_sentence(url: str, hosts: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Webhook(url, SECRET, hosts=hosts)
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_compared_as_names() -> None:
    target = Target.of("https://Hooks.Example./x", ["HOOKS.example."])
    assert (target.host, target.port, target.authority) == ("hooks.example", 443, "hooks.example")


@pytest.mark.parametrize("secret", ["short", "whsec_%%%", "whsec_c2hvcnQ="])
def test_a_weak_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        Webhook("https://hooks.example/", secret)
    assert secret not in str(caught.value)


def test_the_secret_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    assert module.read_secret(str(path)) == SECRET
    monkeypatch.setenv(module.SECRET_VARIABLE, "from-the-environment-0123456789")
    assert module.read_secret() == "from-the-environment-0123456789"
    with pytest.raises(ValueError, match="cannot be read"):
        module.read_secret(str(tmp_path / "nowhere"))
    monkeypatch.delenv(module.SECRET_VARIABLE)
    with pytest.raises(ValueError, match=module.SECRET_VARIABLE):
        module.read_secret()


# With TLS.


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for the name localhost, which clients here trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_the_certificate_is_checked_for_the_name_though_the_connection_goes_to_the_address(
    certificate: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(OK, tls=certificate) as receiver:
        for host in ("localhost", "127.0.0.1"):
            url = receiver.url(host, "https")
            Webhook(url, SECRET, hosts=["localhost", "127.0.0.1"], pauses=no_waiting(2))(REPORT)
        assert [d.headers["host"] for d in receiver.got] == [f"localhost:{receiver.port}"]
    assert "SSLError" in caplog.text
    assert "IP address mismatch" in caplog.text


def test_a_certificate_that_nobody_vouches_for_is_refused(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with receiving(tls=certificate) as receiver:
        hook = Webhook(receiver.url("localhost", "https"), SECRET, hosts=["localhost"], pauses=())
        thread = threading.Thread(target=hook, args=(REPORT,))
        thread.start()
        thread.join(20)
        assert receiver.got == []
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
