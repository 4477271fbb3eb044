"""Certificates for a center and its workers, from an authority of one's own. Needs the extra `remote`. No torch."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as Key

AUTHORITY_DAYS = 3650
"""How long the authority lasts; workers need its new ca.pem then."""

EARLIER = datetime.timedelta(days=1)
"""By so much a certificate is valid before it was made: the clocks of machines differ."""

_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")


@dataclass(frozen=True)
class Certificates:
    """What `make_certificates` made, and for whom.

    Attributes:
        folder: Where the files lie.
        hosts: Names and addresses that the server's certificate is for.
        expires: When the server's and the workers' certificates expire.
        renewed: Whether the authority was there already.
    """

    folder: Path
    hosts: tuple[str, ...]
    expires: datetime.datetime
    renewed: bool

    @property
    def authority(self) -> Path:
        """`ca.pem`: every worker needs it; no secret."""
        return self.folder / "ca.pem"

    @property
    def authority_key(self) -> Path:
        """`ca.key`: whoever has it can pose as the center. Needed to renew, nowhere else."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """`server.pem`: the center's."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """`server.key`: the center's secret."""
        return self.folder / "server.key"

    @property
    def client_certificate(self) -> Path:
        """`client.pem`: the workers', where the center asks for one (mutual TLS)."""
        return self.folder / "client.pem"

    @property
    def client_key(self) -> Path:
        """`client.key`: the workers' secret."""
        return self.folder / "client.key"

    @property
    def token(self) -> Path:
        """`token`: a random one, for the center and its workers; kept when certificates are renewed."""
        return self.folder / "token"


def make_certificates(folder: str | Path, hosts: Iterable[str] = (), *, days: int = 365) -> Certificates:
    """Make an authority, a certificate for the center, one for the workers, and a token.

    In a folder that has its authority already, the center's and the workers' certificates are renewed: workers go on
    trusting the same `ca.pem`. All keys are of the curve P-256, and only their owner may read them.

    Args:
        folder: Where `ca.pem`, `ca.key`, `server.pem`, `server.key`, `client.pem`, `client.key` and `token` go.
        hosts: Names and addresses that workers call the center by, beside those that are always in it: this machine's
            name, `localhost`, `127.0.0.1`, `::1`, and those of the certificate that is renewed.
        days: How long the center's and the workers' certificates last; never longer than the authority, which lasts
            ten years.

    Raises:
        ValueError: A setting that can't be, or files that this function did not make and so does not replace.
        OSError: The folder can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = make_certificates(folder, ["center.example.org"], days=30)
        ...     len(list(Path(folder).iterdir())), oct(made.key.stat().st_mode & 0o777), made.hosts[0]
        (7, '0o600', 'center.example.org')

    Reference:
        RFC 5280, sections 4.1 and 4.2: fields and extensions of a certificate.
    """
    if not 1 <= days <= AUTHORITY_DAYS:
        raise ValueError(f"certificate: days must be in 1 to {AUTHORITY_DAYS}. Got {days}. Use e.g. 365.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"certificate: the folder must be one. Got {folder}, which is a file. Choose another name.")
    asked = [_host(host) for host in hosts]
    authority, before = _authority_in(folder)
    key, certificate = authority or _new_authority()
    names = tuple(dict.fromkeys([*asked, *before, *_own_names()]))
    expires = min(_now() + datetime.timedelta(days=days), certificate.not_valid_after_utc)
    server_key, server = _issued(key, certificate, "hooke center", expires, names)
    client_key, client = _issued(key, certificate, "hooke worker", expires)
    made = Certificates(folder, names, expires.replace(microsecond=0), authority is not None)
    files = {made.key: _pem(server_key), made.certificate: _pem(server)}
    files |= {made.client_key: _pem(client_key), made.client_certificate: _pem(client)}
    if authority is None:
        files |= {made.authority_key: _pem(key), made.authority: _pem(certificate)}
    if not made.token.exists():
        files[made.token] = secrets.token_urlsafe().encode()  # no end of line: a Kubernetes secret keeps it
    _write(files)
    return made


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# What is there already ------------------------------------------------------------------------------------------------


def _authority_in(folder: Path) -> tuple[tuple[Key, x509.Certificate] | None, list[str]]:
    """The authority that an earlier call left in the folder, and the hosts that its certificate for the center is for.

    Raises:
        ValueError: The folder has files of these names that no earlier call made.
    """
    there = [name for name in ("ca", "server", "client") if _exists(folder, name)]
    if not there:
        return None, []
    if not ((folder / "ca.key").exists() and (folder / "ca.pem").exists()):
        raise ValueError(
            f"certificate: only what this command made is replaced. Got {folder} with {there[-1]}.pem or .key, and "
            "without ca.pem and ca.key. Choose another folder, or move them away."
        )
    key, certificate = _read_authority(folder)
    if certificate.not_valid_after_utc <= _now():
        raise ValueError(
            f"certificate: ca.pem must be valid. Got {folder / 'ca.pem'}, which has expired. Choose another folder, "
            "and give every worker the new ca.pem."
        )
    for name in ("server", "client"):
        _check_issued(folder / f"{name}.pem", certificate)
    return (key, certificate), hosts_of(folder / "server.pem")


def _exists(folder: Path, name: str) -> bool:
    return any((folder / f"{name}.{ending}").exists() for ending in ("pem", "key"))


def _read_authority(folder: Path) -> tuple[Key, x509.Certificate]:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"certificate: ca.pem and ca.key in {folder} must be readable, without a password. Got: {error}. Choose "
            "another folder."
        ) from None
    if not isinstance(key, Key) or key.public_key() != certificate.public_key():
        raise ValueError(
            f"certificate: ca.key must be the key of ca.pem, of an elliptic curve. Got another in {folder}. Choose "
            "another folder."
        )
    return key, certificate


def _check_issued(path: Path, authority: x509.Certificate) -> None:
    """Refuse to replace a certificate that comes from elsewhere."""
    if not path.exists():
        return
    try:
        x509.load_pem_x509_certificate(path.read_bytes()).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ValueError(
            f"certificate: only what this command made is replaced. Got {path}, which does not come from the ca.pem "
            "beside it. Choose another folder, or move it away."
        ) from None


def hosts_of(path: str | Path) -> list[str]:
    """Names and addresses that a certificate is for, in its order; none where there is no such certificate."""
    try:
        extensions = x509.load_pem_x509_certificate(Path(path).read_bytes()).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    return [str(name.value) for name in names]


# Hosts ----------------------------------------------------------------------------------------------------------------


def _host(text: str) -> str:
    """A name or an address, as a certificate has it.

    Raises:
        ValueError: It is neither.
    """
    bare = text.strip("[]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if _NAME.fullmatch(text) and len(text) <= 253:
        return text.lower().rstrip(".")
    raise ValueError(
        f"certificate: a host must be a name or an address, without port or scheme. Got {text!r}. Use e.g. "
        "center.example.org or 192.0.2.1."
    )


def _own_names() -> list[str]:
    own = [name.lower() for name in (socket.getfqdn(), socket.gethostname()) if _NAME.fullmatch(name)]
    return [*own, "localhost", "127.0.0.1", "::1"]


# Making ---------------------------------------------------------------------------------------------------------------


def _new_authority() -> tuple[Key, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"hooke authority {secrets.token_hex(4)}")
    expires = _now() + datetime.timedelta(days=AUTHORITY_DAYS)
    builder = _builder(key, name, name, expires)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return key, builder.sign(key, hashes.SHA256())


def _issued(
    authority_key: Key,
    authority: x509.Certificate,
    who: str,
    expires: datetime.datetime,
    hosts: tuple[str, ...] = (),
) -> tuple[Key, x509.Certificate]:
    """A key and its certificate: with hosts a server's, without a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(key, _subject(who), authority.subject, expires)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    of_authority = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(of_authority), critical=False
    )
    purposes = x509.oid.ExtendedKeyUsageOID
    purpose = purposes.SERVER_AUTH if hosts else purposes.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return key, builder.sign(authority_key, hashes.SHA256())


def _builder(key: Key, subject: x509.Name, issuer: x509.Name, expires: datetime.datetime) -> x509.CertificateBuilder:
    public = key.public_key()
    builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number(), _now() - EARLIER, expires)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        **never,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(made: Key | x509.Certificate) -> bytes:
    if isinstance(made, x509.Certificate):
        return made.public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8
    return made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(files: dict[Path, bytes]) -> None:
    """Write all beside their places, then rename all: a full disk leaves what was there."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0o644 if path.suffix == ".pem" else 0o600
            with os.fdopen(os.open(beside[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, new in beside.items():
            new.replace(path)
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)
