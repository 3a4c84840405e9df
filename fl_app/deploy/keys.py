# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys of a deployment: one authority, the SuperLink's certificate, a key a node.

Private keys are files that only their owner reads. What is there already is kept; a certificate
that is about to expire, or lacks a name, is made anew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_app.deploy.errors import DeploymentError
from fl_registry.files.atomic import write_whole

AUTHORITY_LASTS = timedelta(days=3650)
CERTIFICATE_LASTS = timedelta(days=825)
RENEWED_BEFORE = timedelta(days=30)
"""Time before its end from which a certificate is made anew."""
CLOCK_SLACK = timedelta(hours=1)
"""How far the clocks of other machines may be behind."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SECRET = 0o600


@dataclass(frozen=True)
class NodeKey:
    """Where a SuperNode's key pair lies.

    Parameters
    ----------
    private : Path
        The private key, an EC key on P-384 in OpenSSH's format; it stays with the SuperNode.
    public : Path
        The public key, which the SuperLink is told by `flwr supernode register`.
    """

    private: Path
    public: Path


@dataclass(frozen=True)
class Keys:
    """Where the keys and certificates in a folder lie.

    Parameters
    ----------
    folder : Path
        The folder of all of them.
    """

    folder: Path

    @property
    def authority(self) -> Path:
        """Certificate of the authority: SuperNodes and `flwr` know the SuperLink by it."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Key of the authority: needed for new certificates only."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The SuperLink's certificate."""
        return self.folder / "superlink.crt"

    @property
    def key(self) -> Path:
        """The SuperLink's key."""
        return self.folder / "superlink.key"

    def node(self, number: int) -> NodeKey:
        """Key pair of a SuperNode, counted from 1."""
        return NodeKey(self.folder / f"node-{number}", self.folder / f"node-{number}.pub")


def make_keys(
    folder: Path, names: Sequence[str] = LOCAL_NAMES, *, nodes: int = 0, now: datetime | None = None
) -> list[Path]:
    """Make what is missing or about to expire; return the files that were written.

    Parameters
    ----------
    folder : Path
        Where they go; made, for its owner only, if it is not there.
    names : Sequence[str]
        Host names and IP addresses by which the SuperLink is called.
    nodes : int
        Number of key pairs for SuperNodes.
    now : datetime | None
        The present moment, in UTC.

    Raises
    ------
    DeploymentError
        A name is none, or a file cannot be read or written.
    """
    moment = now or datetime.now(UTC)
    called = [_general_name(name) for name in names]
    keys = Keys(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = _make_authority(keys, moment)
        known = _names(keys)
        if not (set(called) <= known and _is_good(keys, moment)):
            written += _make_certificate(keys, sorted({*called, *known}, key=repr), moment)
        for number in range(1, nodes + 1):
            written += _make_node_key(keys.node(number))
    except (OSError, ValueError, TypeError) as error:
        said = getattr(error, "strerror", None) or error
        raise DeploymentError(
            f"The keys in {folder} cannot be used or written ({said}); see what is there, or name "
            "another folder."
        ) from error
    return written


def _make_authority(keys: Keys, now: datetime) -> list[Path]:
    if keys.authority.exists():  # its key may be kept elsewhere
        return []
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app authority")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _draft(name, name, key, now, AUTHORITY_LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write_pair(keys.authority_key, key, keys.authority, certificate)


def _make_certificate(keys: Keys, names: Sequence[x509.GeneralName], now: datetime) -> list[Path]:
    authority = x509.load_pem_x509_certificate(keys.authority.read_bytes())
    if not keys.authority_key.exists():
        raise ValueError(
            f"{keys.certificate.name} must be made, and {keys.authority_key.name} is not there"
        )
    signer = serialization.load_pem_private_key(keys.authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{keys.authority_key.name} is no key on an elliptic curve")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app SuperLink")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _draft(name, authority.subject, key, now, CERTIFICATE_LASTS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _write_pair(keys.key, key, keys.certificate, certificate)


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lasts: timedelta,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + lasts)
        .add_extension(identifier, critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _names(keys: Keys) -> set[x509.GeneralName]:
    """Names that the SuperLink's certificate has; none without one."""
    if not keys.certificate.exists():
        return set()
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _is_good(keys: Keys, now: datetime) -> bool:
    """Whether the SuperLink's certificate fits its key, is the authority's and lasts a while."""
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(keys.authority.read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        return False
    if not keys.key.exists() or certificate.not_valid_after_utc - RENEWED_BEFORE <= now:
        return False
    key = serialization.load_pem_private_key(keys.key.read_bytes(), None)
    return key.public_key() == certificate.public_key()


def _make_node_key(pair: NodeKey) -> list[Path]:
    if pair.private.exists() and pair.public.exists():
        return []
    ssh = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    if pair.private.exists():
        key = serialization.load_ssh_private_key(pair.private.read_bytes(), None)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(serialization.Encoding.PEM, *ssh)
        write_whole(pair.private, private, mode=SECRET)
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    write_whole(pair.public, key.public_key().public_bytes(*openssh) + b"\n")
    return [pair.private, pair.public]


def _write_pair(
    key_file: Path,
    key: ec.EllipticCurvePrivateKey,
    certificate_file: Path,
    certificate: x509.Certificate,
) -> list[Path]:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_whole(key_file, private, mode=SECRET)
    write_whole(certificate_file, certificate.public_bytes(pem))
    return [key_file, certificate_file]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name or not name.isascii() or not all(c.isalnum() or c in "-.*_" for c in name):
        raise DeploymentError(
            f"{name!r} is no host name and no IP address; give the SuperLink's, without a port."
        )
    return x509.DNSName(name)
