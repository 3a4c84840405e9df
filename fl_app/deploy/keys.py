# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys of a deployment: an authority, the SuperLink's certificate, a key a node.

Flower's one port has TLS, and its SuperLink identifies SuperNodes by EC keys in OpenSSH's format.
`cryptography` makes both, and can check whether a certificate still fits, which a shell script
around openssl cannot. The authority's key is a file of its own: only new certificates need it.
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

AUTHORITY_LIFETIME = timedelta(days=3650)
CERTIFICATE_LIFETIME = timedelta(days=825)
RENEWAL = timedelta(days=30)
"""Time before its end from which a certificate is replaced."""
CLOCK_SLACK = timedelta(hours=1)
"""How far the clocks of other machines may be behind."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
SECRET = 0o600

_PEM, _NO_PASSWORD = serialization.Encoding.PEM, serialization.NoEncryption()
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True)
class NodeKey:
    """Files of a SuperNode's key pair.

    Parameters
    ----------
    private : Path
        The private key, an EC key on P-384 in OpenSSH's format; it stays with the SuperNode.
    public : Path
        The public key, for `flwr supernode register`.
    """

    private: Path
    public: Path


@dataclass(frozen=True)
class Keys:
    """Files of keys and certificates.

    Parameters
    ----------
    folder : Path
        The folder of all of them.
    """

    folder: Path

    @property
    def authority(self) -> Path:
        """Certificate of the authority, by which SuperNodes and `flwr` verify the SuperLink."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Key of the authority; only new certificates need it."""
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
    """Create missing keys and certificates, and replace a certificate that is about to expire.

    A certificate without one of the names is replaced as well, and has the old names too.

    Parameters
    ----------
    folder : Path
        Where the files are; created, for its owner only, if it does not exist.
    names : Sequence[str]
        Host names and IP addresses of the SuperLink.
    nodes : int
        Number of key pairs for SuperNodes.
    now : datetime | None
        The present time, in UTC; default: the clock's.

    Returns
    -------
    list[Path]
        The files that were written.

    Raises
    ------
    DeploymentError
        A name is invalid, or a file cannot be read or written.
    """
    moment = now or datetime.now(UTC)
    wanted = {_general_name(name) for name in names}
    keys = Keys(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = _make_authority(keys, moment)
        present = _names(keys)
        if not (wanted <= present and _is_valid(keys, moment)):
            written += _make_certificate(keys, sorted(wanted | present, key=repr), moment)
        for number in range(1, nodes + 1):
            written += _make_node_key(keys.node(number))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeploymentError(
            f"The keys in {folder} cannot be used or written ({reason}); correct the files, or "
            "name another folder."
        ) from error
    return written


def _make_authority(keys: Keys, now: datetime) -> list[Path]:
    if keys.authority.exists():  # its key may be stored on another machine
        return []
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app authority")])
    certificate = (
        _builder(name, name, key, now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write_pair(keys.authority_key, key, keys.authority, certificate)


def _make_certificate(keys: Keys, names: Sequence[x509.GeneralName], now: datetime) -> list[Path]:
    authority = x509.load_pem_x509_certificate(keys.authority.read_bytes())
    if not keys.authority_key.exists():
        raise ValueError(
            f"{keys.certificate.name} must be written, and {keys.authority_key.name} is not there"
        )
    signer = serialization.load_pem_private_key(keys.authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{keys.authority_key.name} is not a key on an elliptic curve")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-app SuperLink")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(name, authority.subject, key, now, CERTIFICATE_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(server, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _write_pair(keys.key, key, keys.certificate, certificate)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + lifetime)
        .add_extension(identifier, critical=False)
    )


def _usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in granted for usage in _USAGES})


def _names(keys: Keys) -> set[x509.GeneralName]:
    """Return the names in the SuperLink's certificate; empty if there is none."""
    if not keys.certificate.exists():
        return set()
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def _is_valid(keys: Keys, now: datetime) -> bool:
    """Whether the SuperLink's certificate has our authority and key, and does not end soon."""
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(keys.authority.read_bytes())
    try:
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        return False
    if not keys.key.exists() or certificate.not_valid_after_utc - RENEWAL <= now:
        return False
    key = serialization.load_pem_private_key(keys.key.read_bytes(), None)
    return key.public_key() == certificate.public_key()


def _make_node_key(pair: NodeKey) -> list[Path]:
    if pair.private.exists() and pair.public.exists():
        return []
    if pair.private.exists():
        key = serialization.load_ssh_private_key(pair.private.read_bytes(), None)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, _NO_PASSWORD)
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
    private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _NO_PASSWORD)
    write_whole(key_file, private, mode=SECRET)
    write_whole(certificate_file, certificate.public_bytes(_PEM))
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
