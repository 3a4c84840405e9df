# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys of a deployment: an authority, the SuperLink's certificate, a key a node.

Flower's one port has TLS, and its SuperLink identifies SuperNodes by EC keys in OpenSSH's format.
`cryptography` makes both, and can check whether a certificate still fits, which a shell script
around openssl cannot. The authority's key is a file of its own: only new certificates need it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_app.deploy.errors import DeploymentError, explained
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
    with explained(
        f"The keys in {folder} cannot be used or written",
        "correct the files, or name another folder",
        (OSError, ValueError, TypeError),
    ):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = _make_authority(keys, moment)
        present, is_valid = _certified(keys, moment)
        if not (wanted <= present and is_valid):
            written += _make_certificate(keys, sorted(wanted | present, key=repr), moment)
        for number in range(1, nodes + 1):
            written += _make_node_key(keys.node(number))
        return written


def _make_authority(keys: Keys, now: datetime) -> list[Path]:
    if keys.authority.exists():  # its key may be stored on another machine
        return []
    extensions = {
        x509.BasicConstraints(ca=True, path_length=0): True,
        _usage("key_cert_sign", "crl_sign"): True,
    }
    files, valid = (keys.authority_key, keys.authority), (now, AUTHORITY_LIFETIME)
    return _issue(files, "fl-app authority", valid, extensions)


def _make_certificate(keys: Keys, names: Sequence[x509.GeneralName], now: datetime) -> list[Path]:
    authority = x509.load_pem_x509_certificate(keys.authority.read_bytes())
    if not keys.authority_key.exists():
        raise ValueError(
            f"{keys.certificate.name} must be written, and {keys.authority_key.name} is not there"
        )
    signer = serialization.load_pem_private_key(keys.authority_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{keys.authority_key.name} is not a key on an elliptic curve")
    extensions = {
        x509.BasicConstraints(ca=False, path_length=None): True,
        _usage("digital_signature"): True,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]): False,
        x509.SubjectAlternativeName(names): False,
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()): False,
    }
    files, valid = (keys.key, keys.certificate), (now, CERTIFICATE_LIFETIME)
    return _issue(files, "fl-app SuperLink", valid, extensions, (authority.subject, signer))


def _issue(
    files: tuple[Path, Path],
    name: str,
    valid: tuple[datetime, timedelta],
    extensions: Mapping[x509.ExtensionType, bool],
    authority: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None,
) -> list[Path]:
    """Write a new key and its certificate.

    Parameters
    ----------
    files : tuple[Path, Path]
        Of the key and of the certificate.
    name : str
        Common name of the subject.
    valid : tuple[datetime, timedelta]
        The present time, and for how long from then.
    extensions : Mapping[x509.ExtensionType, bool]
        Extensions, and whether they are critical.
    authority : tuple[x509.Name, ec.EllipticCurvePrivateKey] | None
        The issuer's name and key; None for a certificate that signs itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = authority or (subject, key)
    now, lifetime = valid
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical)
    private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, _NO_PASSWORD)
    write_whole(files[0], private, mode=SECRET)
    write_whole(files[1], builder.sign(signer, hashes.SHA256()).public_bytes(_PEM))
    return [*files]


def _usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in granted for usage in _USAGES})


def _certified(keys: Keys, now: datetime) -> tuple[set[x509.GeneralName], bool]:
    """Return the names in the SuperLink's certificate, and whether it stays.

    It stays if it has our authority and key, and does not end soon.
    """
    if not keys.certificate.exists():
        return set(), False
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    names = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    try:
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate(keys.authority.read_bytes())
        )
    except InvalidSignature:
        return names, False
    if not keys.key.exists() or certificate.not_valid_after_utc - RENEWAL <= now:
        return names, False
    key = serialization.load_pem_private_key(keys.key.read_bytes(), None)
    return names, key.public_key() == certificate.public_key()


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
