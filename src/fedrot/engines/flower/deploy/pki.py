"""Certificates and keys: one authority and one server certificate for TLS, one key pair per node to identify it.

The authority's private key signs the server's certificate and is not kept, unless asked for: whoever has it can pose as
the server. A new server certificate without it means a new authority certificate on every node.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrot.errors import ConfigError, OutputError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Certificates:
    """PEM files of a new federation."""

    ca: bytes
    server: bytes
    server_key: bytes


def make_certificates(hosts: Sequence[str], days: int, now: datetime | None = None) -> Certificates:
    """A new authority and a server certificate signed by it, both on curve P-384; the authority's key is dropped.

    Args:
        hosts: names and addresses by which nodes reach the server; the local ones are added.
        days: until both expire.
        now: for tests.

    Raises:
        ConfigError: no such host name, or a lifetime that is not positive.
    """
    if days < 1:
        raise ConfigError(f"--days {days}: expected at least 1")
    start = (now or datetime.now(UTC)) - CLOCK_SKEW
    end = start + timedelta(days=days)
    ca_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = _name("fedrot federation authority")
    ca = (
        _builder(issuer, issuer, ca_key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    names = [alternative_name(host) for host in dict.fromkeys([*hosts, *LOCAL_NAMES])]
    server = (
        _builder(_name("fedrot federation server"), issuer, server_key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    pem = PrivateFormat.PKCS8
    return Certificates(
        ca=ca.public_bytes(Encoding.PEM),
        server=server.public_bytes(Encoding.PEM),
        server_key=server_key.private_bytes(Encoding.PEM, pem, NoEncryption()),
    )


def make_node_key(comment: str) -> tuple[bytes, bytes]:
    """A node's private and public key on curve P-384, in the format of `ssh-keygen`, as Flower wants them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + b" " + comment.encode() + b"\n"


def alternative_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it: an address or a DNS name.

    Raises:
        ConfigError: neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789-"
    if not host or not all(label and set(label.lower()) <= set(allowed) for label in labels):
        raise ConfigError(
            f"--host {host!r}: expected a host name or an address, without protocol and port, such as fed.example.org"
        )
    return x509.DNSName(host)


def check_certificate(path: Path, now: datetime | None = None) -> x509.Certificate:
    """Read a certificate that is valid now.

    Raises:
        ConfigError: unreadable, not a certificate, not yet or no longer valid; with dates and remedy.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"'{path}': cannot be read ({error.strerror}); copy the certificate there"
        ) from error
    except ValueError as error:
        raise ConfigError(f"'{path}': not a PEM certificate ({error}); copy it again") from error
    now = now or datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        when = (
            f"expired on {end:%Y-%m-%d %H:%M} UTC"
            if now > end
            else f"is valid from {begin:%Y-%m-%d %H:%M} UTC on"
        )
        raise ConfigError(
            f"'{path}': the certificate {when}, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC; run "
            "`fedrot deploy renew` on the server and copy the new ca.crt to every node, or set the clock"
        )
    return certificate


def check_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's private key.

    Raises:
        ConfigError: unreadable, readable by others, or not such a key.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"'{path}': other users may read this private key; run `chmod 600 {path}`, and make a new key if they "
                "had the chance"
            )
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"'{path}': cannot be read ({error.strerror}); make the node's key with `fedrot deploy keygen`"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"'{path}': not a private key without passphrase in OpenSSH's format ({error}); "
            "make one with `fedrot deploy keygen`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"'{path}': an {type(key).__name__}, expected one on curve P-384; make one with `fedrot deploy keygen`"
        )
    return key


def read_public_key(path: Path) -> bytes:
    """A node's public key as the SuperLink stores it.

    Raises:
        ConfigError: unreadable, or not such a key.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"'{path}': cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(
            f"'{path}': not a public key in OpenSSH's format ({error}); copy the node's node.pub there"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"'{path}': a {type(key).__name__}, expected one on curve P-384")
    return public_bytes(key)


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in PEM, Flower's form."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on; nothing is overwritten.

    Raises:
        OutputError: there is one already, or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OutputError(f"'{path}' exists already and is not overwritten; move it away first") from None
    except OSError as error:
        raise OutputError(f"'{path}': cannot be written ({error.strerror})") from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
