"""Certificates that real TLS accepts, and the sentences for those that it does not."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509

import hooke
from hooke import certificate
from hooke.certificate import Certificates, make_certificates


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("keys"))


def at(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let certificates be made some days from now."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    monkeypatch.setattr(certificate, "_now", lambda: moment)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> dict[str, object] | None:
    """One real handshake; what the server knows of the client."""
    known: list[dict[str, object] | None] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            plain, _ = listening.accept()
            try:
                with server.wrap_socket(plain, server_side=True) as secure:
                    known.append(secure.getpeercert())
                    secure.sendall(b"x")
            except (ssl.SSLError, ConnectionError):
                plain.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname()) as plain,
                client.wrap_socket(plain, server_hostname=host) as secure,
            ):
                assert secure.recv(1) == b"x"
        finally:
            thread.join()
    return known[0]


def server_context(made: Certificates, *, mutual: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(made.authority)
    return context


def client_context(made: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(made.authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    return context


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_real_handshake_trusts_the_chain(made: Certificates, host: str) -> None:
    handshake(server_context(made), client_context(made), host)


def test_another_name_is_not_trusted(made: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server_context(made), client_context(made), "center.example.org")


def test_another_authority_is_not_trusted(made: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(made), client_context(other), "localhost")


def test_mutual_tls_knows_the_worker_and_takes_no_server_for_one(made: Certificates) -> None:
    client = client_context(made)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server_context(made, mutual=True), client, "localhost")
    client.load_cert_chain(made.client_certificate, made.client_key)
    known = handshake(server_context(made, mutual=True), client, "localhost")
    assert known is not None and known["subject"] == ((("commonName", "hooke worker"),),)
    client.load_cert_chain(made.certificate, made.key)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server_context(made, mutual=True), client, "localhost")


def test_the_worker_s_certificate_is_no_center_s(made: Certificates) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.client_certificate, made.client_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, client_context(made), "localhost")


def test_names_and_addresses_have_their_kinds(tmp_path: Path) -> None:
    made = make_certificates(tmp_path, ["Center.Example.org", "*.lab.example.org", "192.0.2.7", "[2001:db8::1]"])
    names = x509.load_pem_x509_certificate(made.certificate.read_bytes()).extensions
    names = names.get_extension_for_class(x509.SubjectAlternativeName).value
    dns, addresses = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.IPAddress)
    assert dns[:2] == ["center.example.org", "*.lab.example.org"] and {"localhost", socket.getfqdn().lower()} <= {*dns}
    assert addresses[:2] == [ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("2001:db8::1")]
    assert {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")} <= {*addresses}
    assert made.hosts[0] == "center.example.org"


def test_secrets_are_their_owner_s_alone(made: Certificates) -> None:
    secret = {made.authority_key, made.key, made.client_key, made.token}
    assert {path for path in made.folder.iterdir() if path.stat().st_mode & 0o077 == 0} == secret
    assert {path.name for path in made.folder.iterdir()} == {
        *("ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key", "token")
    }
    token = made.token.read_text()
    assert len(token) >= 32 and token == token.strip()


def test_a_second_call_keeps_the_authority_the_token_and_the_names_and_renews_the_rest(tmp_path: Path) -> None:
    first = make_certificates(tmp_path, ["center.example.org"], days=5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = make_certificates(tmp_path, ["192.0.2.7"], days=50)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca.key", "token"}
    assert set(before) == set(after)
    assert (first.renewed, second.renewed) == (False, True)
    assert second.hosts[:2] == ("192.0.2.7", "center.example.org") and len(set(second.hosts)) == len(second.hosts)
    handshake(server_context(second), client_context(first), "localhost")
    handshake(server_context(second, mutual=True), client_with(second), "center.example.org")
    assert (second.expires - datetime.datetime.now(datetime.UTC)).days in (49, 50)


def client_with(made: Certificates) -> ssl.SSLContext:
    context = client_context(made)
    context.load_cert_chain(made.client_certificate, made.client_key)
    return context


def test_no_certificate_outlives_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, days=-3000)
    make_certificates(tmp_path)
    monkeypatch.undo()
    made = make_certificates(tmp_path, days=3000)
    authority, server = (
        x509.load_pem_x509_certificate(path.read_bytes()) for path in (made.authority, made.certificate)
    )
    assert server.not_valid_after_utc == authority.not_valid_after_utc == made.expires


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"days": 0}, "certificate: days must be in 1 to 3650. Got 0. Use e.g. 365."),
        ({"days": 4000}, "certificate: days must be in 1 to 3650. Got 4000."),
        ({"hosts": ["center:29400"]}, "without port or scheme. Got 'center:29400'. Use e.g. center.example.org"),
        ({"hosts": ["grpc+tls://center"]}, "Got 'grpc+tls://center'."),
        ({"hosts": [""]}, "Got ''."),
        ({"hosts": ["ä.org"]}, "Got 'ä.org'."),
    ],
)
def test_what_can_not_be_made_is_one_sentence(tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_certificates(tmp_path, **arguments)  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_it_did_not_make_it_does_not_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> str:
        before = {path: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
        with pytest.raises(ValueError) as caught:
            make_certificates(folder)
        assert not before or before == {path: path.read_bytes() for path in folder.iterdir()}
        return str(caught.value)

    folders = [tmp_path / name for name in ("a", "b", "c", "d", "e")]
    made = [make_certificates(folder) for folder in folders[:4]]
    made[0].authority_key.unlink()
    assert "only what this command made is replaced. Got" in refused(folders[0])
    made[1].certificate.write_bytes(made[2].certificate.read_bytes())
    assert "server.pem, which does not come from the ca.pem beside it" in refused(folders[1])
    made[2].authority_key.write_bytes(made[3].authority_key.read_bytes())
    assert "ca.key must be the key of ca.pem, of an elliptic curve. Got another" in refused(folders[2])
    made[3].authority_key.write_bytes(b"nothing")
    assert "must be readable, without a password. Got: " in refused(folders[3])
    at(monkeypatch, days=-4000)
    make_certificates(folders[4])
    monkeypatch.undo()
    assert "ca.pem, which has expired. Choose another folder, and give every worker" in refused(folders[4])
    (tmp_path / "file").touch()
    assert "which is a file. Choose another name." in refused(tmp_path / "file")


# Through hooke.serve and hooke.connect --------------------------------------------------------------------------------


def trouble(url: str, wait: float = 0.0, **options: object) -> str:
    with pytest.raises((OSError, ValueError)) as caught:
        hooke.connect(url, timeout=5.0, wait=wait, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def serving(center: hooke.LocalCenter, made: Certificates, **options: object) -> hooke.CenterServer:
    return hooke.serve(center, certificate=made.certificate, key=made.key, **options)  # type: ignore[arg-type]


def test_a_worker_with_the_authority_and_the_token_is_let_in(center: hooke.LocalCenter, made: Certificates) -> None:
    with serving(center, made, token="t") as server:
        assert server.url.startswith("grpc+tls://127.0.0.1:")
        for host in ("127.0.0.1", "localhost"):
            hooke.connect(server.url.replace("127.0.0.1", host), token="t", authority=made.authority).close()
        assert "wants its token. Got another token." in trouble(server.url, token="u", authority=made.authority)
        assert "wants its token. Got no token." in trouble(server.url, authority=made.authority)


def test_another_authority_is_named_at_once(center: hooke.LocalCenter, made: Certificates, tmp_path: Path) -> None:
    other, began = make_certificates(tmp_path), time.monotonic()
    with serving(center, made) as server:
        said = trouble(server.url, wait=60.0, authority=other.authority)
    assert "must show a certificate that can be trusted. Got one that can't: " in said
    assert said.endswith("Pass authority=, the ca.pem that was made together with it.")
    assert time.monotonic() - began < 50  # it does not wait for what does not pass


def test_an_authority_that_is_a_key_is_named_at_once(center: hooke.LocalCenter, made: Certificates) -> None:
    began = time.monotonic()
    with serving(center, made) as server:
        said = trouble(server.url, wait=60.0, authority=made.key)
    assert f"needs an authority to be trusted by. Got {made.key}, which holds no certificate." in said
    assert time.monotonic() - began < 50  # it does not wait for what does not pass


def test_without_an_authority_a_certificate_of_one_s_own_is_not_trusted(
    center: hooke.LocalCenter, made: Certificates
) -> None:
    with serving(center, made) as server:
        assert "Pass authority=, the ca.pem that was made together with it." in trouble(server.url)


def test_an_expired_certificate_is_named(
    center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, days=-30)
    made = make_certificates(tmp_path, days=10)
    with serving(center, made) as server:
        said = trouble(server.url, authority=made.authority)
    assert said.endswith("it has expired. Make a new one on the center's machine: hooke certificate DIR.")
    monkeypatch.undo()
    with serving(center, make_certificates(tmp_path)) as server:  # what the sentence says helps
        hooke.connect(server.url, authority=made.authority).close()


def test_a_certificate_of_the_future_is_named(
    center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, days=30)
    made = make_certificates(tmp_path)
    with serving(center, made) as server:
        assert "it is not valid yet. Set the clocks of both machines." in trouble(server.url, authority=made.authority)


def test_a_certificate_for_another_name_is_named(
    center: hooke.LocalCenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "_own_names", lambda: ["center.example.org"])
    made = make_certificates(tmp_path)
    with serving(center, made) as server:
        said = trouble(server.url, authority=made.authority)
        assert "it is for another name than 127.0.0.1. Make one: hooke certificate DIR --host 127.0.0.1." in said
    with serving(center, make_certificates(tmp_path, ["127.0.0.1"])) as server:
        hooke.connect(server.url, authority=made.authority).close()


def test_mutual_tls_is_asked_for_by_name(center: hooke.LocalCenter, made: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    own = {"certificate": made.client_certificate, "key": made.client_key}
    with serving(center, made, authority=made.authority) as server:
        hooke.connect(server.url, authority=made.authority, **own).close()
        said = trouble(server.url, authority=made.authority)
        assert "asks workers for a certificate of their own. Got none. Pass certificate= and key=" in said
        strange = {"certificate": other.client_certificate, "key": other.client_key}
        assert "which it does not trust." in trouble(server.url, authority=made.authority, **strange)
        mixed = {"certificate": made.client_certificate, "key": other.client_key}
        assert "that don't belong together. Pass a pair." in trouble(server.url, authority=made.authority, **mixed)


def test_tls_and_the_clear_don_t_meet(center: hooke.LocalCenter, made: Certificates) -> None:
    with serving(center, made) as server:
        said = trouble(server.url.replace("+tls", ""))
        assert "must speak in the clear. Got a center that speaks TLS. Use grpc+tls:// and authority=" in said
    with hooke.serve(center) as server:
        said = trouble(server.url.replace("grpc", "grpc+tls"), authority=made.authority)
        assert "must speak TLS. Got a center that does not. Use grpc://" in said
    assert "Got a machine where nobody listens on port" in trouble(server.url)
