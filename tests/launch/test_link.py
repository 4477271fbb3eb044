"""What a worker is told of its center, and what a center says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hooke.certificate import Certificates, make_certificates
from hooke.launch.link import Link
from hooke.launch.request import LaunchError


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOKE_TOKEN", raising=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("keys"), ["*.example.org", "center.example.org"])


def test_a_center_on_every_address_is_called_by_its_certificate(keys: Certificates, tmp_path: Path) -> None:
    named = {"certificate": keys.certificate, "key": keys.key}
    assert Link("0.0.0.0:0", **named).advertised("grpc+tls://vm:29400") == "grpc+tls://center.example.org:29400"
    assert Link("127.0.0.1:0", **named).advertised("grpc+tls://127.0.0.1:1") == "grpc+tls://127.0.0.1:1"
    assert Link("0.0.0.0:0").advertised("grpc://vm:29400") == "grpc://vm:29400"
    numbered = make_certificates(tmp_path, ["2001:db8::1"])
    link = Link("[::]:0", certificate=numbered.certificate, key=numbered.key)
    assert link.advertised("grpc+tls://vm:29400") == "grpc+tls://[2001:db8::1]:29400"


def test_its_invitation_names_the_files_that_are_there(keys: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"listen": "127.0.0.1:0", "certificate": keys.certificate, "key": keys.key}
    trust = f"--authority {keys.authority}"
    assert Link("127.0.0.1:0").invitation("grpc://a:1") == "hooke run --join grpc://a:1 train.py"
    assert Link(**own).invitation("u") == f"hooke run --join u {trust} train.py"
    mutual = Link(**own, token_file=keys.token, authority=keys.authority).invitation("u")
    pair = f"--certificate {keys.client_certificate} --key {keys.client_key}"
    assert mutual == f"hooke run --join u --token-file {keys.token} {trust} {pair} train.py"
    monkeypatch.setenv("HOOKE_TOKEN", "secret")
    assert Link("127.0.0.1:0").invitation("u") == "hooke run --join u train.py   (with the same HOOKE_TOKEN)"


def test_a_worker_finds_its_center_by_the_environment(keys: Certificates) -> None:
    link = Link(join="grpc+tls://a:1,grpc+tls://b:1", token_file=keys.token, authority=keys.authority, codec="int4")
    assert link.urls == ["grpc+tls://a:1", "grpc+tls://b:1"]
    assert link.environment() == {
        "HOOKE_CENTER": link.join,
        "HOOKE_TOKEN": keys.token.read_text().strip(),
        "HOOKE_AUTHORITY": str(keys.authority),
        "HOOKE_CODEC": "int4",
    }
    assert Link().environment() == {} == Link(listen="127.0.0.1:0").environment()


def test_its_words_make_the_same_again(keys: Certificates) -> None:
    link = Link(join="grpc://a:1", token_file=keys.token, codec="int8", insecure=True, wait=5.0)
    options = ["--join", "grpc://a:1", "--token-file", str(keys.token), "--codec", "int8", "--insecure", "--wait", "5"]
    assert link.words() == options
    assert Link().words() == []


def test_a_secret_is_in_no_text_of_it(keys: Certificates) -> None:
    link = Link(listen="127.0.0.1:0", token_file=keys.token)
    secret = keys.token.read_text().strip()
    assert link.token() == secret
    assert secret not in repr(link) + str(link.serving()) + " ".join(link.words()) + link.invitation("u")


def test_a_token_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(LaunchError, match=r"Got .*token: no text"):
        Link(listen="127.0.0.1:0", token_file=tmp_path / "token").token()
