# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys: what they are valid for, and when they are replaced."""

from __future__ import annotations

import argparse
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.keys import CERTIFICATE_LIFETIME, RENEWAL, Keys, make_keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    make_keys(tmp_path / "keys", nodes=2)
    return Keys(tmp_path / "keys")


def contents(keys: Keys) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(keys.folder.iterdir())}


def shake_hands(server: Keys, authority: Path, name: str) -> None:
    """Do a TLS handshake of the SuperLink with a client that trusts an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    trusting = ssl.create_default_context(cafile=authority)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        trusting.wrap_bio(to_client, to_server, server_hostname=name),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for side in ends:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() is not None


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_the_certificate_is_valid_for_each_of_its_names(keys: Keys, name: str) -> None:
    shake_hands(keys, keys.authority, name)


def test_another_name_and_another_authority_are_refused(keys: Keys, tmp_path: Path) -> None:
    make_keys(tmp_path / "others")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(keys, keys.authority, "superlink.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(keys, Keys(tmp_path / "others").authority, "localhost")


def test_private_keys_are_for_their_owner_only(keys: Keys) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()}
    private = {name for name, mode in modes.items() if mode == 0o600}
    assert private == {"ca.key", "superlink.key", "node-1", "node-2"}
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700


def test_flower_accepts_the_nodes_keys(keys: Keys) -> None:
    arguments = argparse.Namespace(
        auth_supernode_private_key=str(keys.node(1).private), auth_supernode_public_key=None
    )
    pair = _try_setup_client_authentication(arguments)
    assert pair is not None
    assert pair[0].curve.name == "secp384r1"
    assert public_key_to_bytes(pair[1]) == try_load_public_key(keys.node(1).public)
    assert try_load_public_key(keys.node(1).public) != try_load_public_key(keys.node(2).public)


def test_existing_keys_are_not_replaced(keys: Keys) -> None:
    before = contents(keys)
    assert make_keys(keys.folder, nodes=2) == []
    assert [path.name for path in make_keys(keys.folder, nodes=3)] == ["node-3", "node-3.pub"]
    after = contents(keys)
    assert {name: after[name] for name in before} == before


def test_a_new_name_joins_the_old_ones(keys: Keys) -> None:
    before = contents(keys)
    written = make_keys(keys.folder, ["superlink.example", "10.0.0.5"], nodes=2)
    assert {path.name for path in written} == {"superlink.crt", "superlink.key"}
    for name in ("superlink.example", "10.0.0.5", "localhost"):
        shake_hands(keys, keys.authority, name)
    assert contents(keys)["ca.crt"] == before["ca.crt"]


def test_a_certificate_that_is_about_to_expire_is_replaced(keys: Keys) -> None:
    ends = datetime.now(UTC) + CERTIFICATE_LIFETIME - RENEWAL
    assert make_keys(keys.folder, now=ends - timedelta(hours=1)) == []
    assert make_keys(keys.folder, now=ends + timedelta(hours=1)) != []
    made = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    assert made.not_valid_after_utc > ends + RENEWAL


def test_a_certificate_that_does_not_fit_is_replaced(keys: Keys, tmp_path: Path) -> None:
    make_keys(tmp_path / "others")
    others = Keys(tmp_path / "others")
    for name in ("superlink.crt", "superlink.key"):
        (keys.folder / name).write_bytes((others.folder / name).read_bytes())
        assert make_keys(keys.folder) != []
        shake_hands(keys, keys.authority, "localhost")


def test_the_authority_s_key_may_be_stored_elsewhere(keys: Keys) -> None:
    keys.authority_key.unlink()
    assert make_keys(keys.folder, nodes=2) == []
    before = contents(keys)
    with pytest.raises(DeploymentError, match=r"ca\.key is not there"):
        make_keys(keys.folder, ["superlink.example"])
    assert contents(keys) == before


def test_a_lost_public_key_is_derived_from_the_private_key(keys: Keys) -> None:
    before = contents(keys)
    keys.node(2).public.unlink()
    make_keys(keys.folder, nodes=2)
    assert contents(keys) == before


@pytest.mark.parametrize("name", ["", "a b", "host:8000", "https://host", "höst", "a\nb"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeploymentError, match="no host name"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_a_damaged_file_is_reported(keys: Keys) -> None:
    keys.certificate.write_text("nothing")
    with pytest.raises(DeploymentError, match="cannot be used or written"):
        make_keys(keys.folder)
