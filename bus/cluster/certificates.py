"""Certificates of a cluster: an authority of its own, one certificate for each host, and the question what is wrong with one.

A host's certificate serves its nats-server (for clients and for routes, where it is a client too) and its node.
"""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import BusError
from .access import Tls

__all__ = [
    "CertificateFault",
    "check_certificates",
    "expiry_words",
    "files_of",
    "make_authority",
    "make_certificate",
]

AUTHORITY_DAYS, HOST_DAYS = 3650, 825
WARNED = datetime.timedelta(days=30)  # before one expires
SLACK = datetime.timedelta(hours=1)  # of clocks that go differently
CA_CERT, CA_KEY = "ca.pem", "ca.key"
HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


class CertificateFault(BusError):
    """A certificate or a key that cannot serve; the words say which file, and why."""


def make_authority(directory: Path) -> None:
    """Make `ca.pem` and `ca.key` there, unless they are there. The key signs certificates and is needed for nothing else.

    Raises CertificateFault where one of the two is there alone.
    """
    there = [path for path in (directory / CA_CERT, directory / CA_KEY) if path.exists()]
    if len(there) == 2:
        return
    if there:
        raise CertificateFault(
            f"{directory}: {CA_CERT} and {CA_KEY} are needed, or neither, and only {there[0].name} is there"
        )
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ringmain cluster")])
    certificate = (
        _builder(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(directory / CA_CERT, directory / CA_KEY, certificate, key)


def make_certificate(directory: Path, names: Sequence[str], days: int = HOST_DAYS) -> Tls:
    """Make a host's certificate and key, signed by the authority there. names: its DNS names and addresses, as the others
    reach it; the first one names the files. Raises FileExistsError rather than replace one, ValueError, CertificateFault.
    """
    for name in names:
        if not HOST.fullmatch(name):
            raise ValueError(f"host {name!r}: a DNS name or an address is expected")
    authority = _read_certificate(directory / CA_CERT)
    authority_key = _read_key(directory / CA_KEY)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey) or _public_bytes(authority_key) != _bytes_of(
        authority
    ):
        raise CertificateFault(f"{directory / CA_KEY}: this is not the key of {directory / CA_CERT}")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    made = files_of(directory, names[0])
    _write_pair(made.cert, made.key, certificate, key)
    return made


def files_of(directory: Path, host: str) -> Tls:
    """Where the files of a host are, in the directory of `make_certificate`."""
    return Tls(directory / CA_CERT, directory / f"{host}.pem", directory / f"{host}.key")


def check_certificates(tls: Tls, host: str | None = None, now: datetime.datetime | None = None) -> None:
    """Whether these files can serve now: readable, of each other, signed by the authority, and in time.

    host: also whether the certificate is for this name or address. Raises CertificateFault.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    authority, certificate, key = _read_certificate(tls.ca), _read_certificate(tls.cert), _read_key(tls.key)
    for path, one in ((tls.ca, authority), (tls.cert, certificate)):
        if now < one.not_valid_before_utc:
            raise CertificateFault(
                f"{path}: valid only from {_day(one.not_valid_before_utc)} on; is this machine's clock right?"
            )
        if now > one.not_valid_after_utc:
            raise CertificateFault(f"{path}: expired on {_day(one.not_valid_after_utc)}; make a new one")
    if _public_bytes(key) != _bytes_of(certificate):
        raise CertificateFault(f"{tls.key}: this is not the key of {tls.cert}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise CertificateFault(f"{tls.cert}: it is not signed by the authority {tls.ca}") from None
    if host is not None and not _is_for(certificate, host):
        raise CertificateFault(
            f"{tls.cert}: it is not for {host}, but for {', '.join(_names(certificate)) or 'nobody'}"
        )


def expiry_words(tls: Tls, now: datetime.datetime | None = None) -> str:
    """What there is to be told of files that serve now, and soon will not, or do not any more; "" if nothing."""
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        check_certificates(tls, now=now)
        for path in (tls.ca, tls.cert):
            end = _read_certificate(path).not_valid_after_utc
            if end - now < WARNED:
                return f"{path}: expires on {_day(end)}; make a new one before"
    except CertificateFault as fault:
        return str(fault)
    return ""


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in extension.value]


def _is_for(certificate: x509.Certificate, host: str) -> bool:
    return host.lower() in [name.lower() for name in _names(certificate)]


def _write_pair(cert: Path, key: Path, certificate: x509.Certificate, private: ec.EllipticCurvePrivateKey) -> None:
    for path in (cert, key):  # before either is written
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content, mode in (
        (key, secret, 0o600),
        (cert, certificate.public_bytes(serialization.Encoding.PEM), 0o644),
    ):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateFault(f"{path}: it cannot be read: {error.strerror}") from error


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise CertificateFault(f"{path}: a certificate in PEM is expected") from None


def _read_key(path: Path) -> PrivateKeyTypes:
    content = _read(path)
    if path.stat().st_mode & 0o007:
        raise CertificateFault(f"{path}: everybody on this machine may read this key: chmod 600")
    try:
        return serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError):
        raise CertificateFault(f"{path}: a key in PEM without a password is expected") from None


def _public_bytes(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _bytes_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _day(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
