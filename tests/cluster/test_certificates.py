"""Certificates: what is made works, and what is wrong with one is said in words."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the cluster needs `pip install ringmain[cluster]`")
from ringmain.bus.cluster.access import Tls
from ringmain.bus.cluster.certificates import (
    CertificateFault,
    check_certificates,
    expiry_words,
    make_authority,
    make_certificate,
)

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder)
    return make_certificate(folder, ["a.example.com", "10.0.0.1", "127.0.0.1"])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("other")
    make_authority(folder)
    return make_certificate(folder, ["b.example.com"])


def test_what_is_made_is_sound_and_for_all_its_names(made: Tls) -> None:
    for host in (None, "a.example.com", "A.Example.com", "10.0.0.1"):
        check_certificates(made, host)


def test_openssl_agrees(made: Tls) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to ask")
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", made.ca, made.cert]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_keys_are_their_owner_s_alone_and_nothing_is_replaced(made: Tls) -> None:
    for key in (made.key, made.ca.with_name("ca.key")):
        assert key.stat().st_mode & 0o777 == 0o600
    authority = made.ca.read_bytes()
    make_authority(made.ca.parent)
    assert made.ca.read_bytes() == authority
    with pytest.raises(FileExistsError):
        make_certificate(made.ca.parent, ["a.example.com"])
    with pytest.raises(ValueError, match="a DNS name or an address is expected"):
        make_certificate(made.ca.parent, ["../elsewhere"])


def test_half_a_pair_is_told_and_nothing_is_made_of_it(made: Tls, other: Tls, tmp_path: Path) -> None:
    shutil.copy(made.ca, tmp_path)
    with pytest.raises(
        CertificateFault, match=r"ca\.pem and ca\.key are needed, or neither, and only ca\.pem is there"
    ):
        make_authority(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ca.pem"]
    shutil.copy(other.ca.with_name("ca.key"), tmp_path)
    with pytest.raises(CertificateFault, match=r"ca\.key: this is not the key of .*ca\.pem"):
        make_certificate(tmp_path, ["a.example.com"])
    shutil.copy(made.ca.with_name("ca.key"), tmp_path)
    (tmp_path / "a.example.com.pem").touch()
    with pytest.raises(FileExistsError, match=r"a\.example\.com\.pem"):
        make_certificate(tmp_path, ["a.example.com"])
    assert not (tmp_path / "a.example.com.key").exists()


def test_what_soon_expires_is_told(made: Tls) -> None:
    def told_after(days: int) -> str:
        return expiry_words(made, NOW + datetime.timedelta(days=days))

    assert told_after(0) == told_after(790) == ""
    assert re.search(r"a\.example\.com\.pem: expires on \d{4}-.* UTC; make a new one before", told_after(800))
    assert "a.example.com.pem: expired on" in told_after(826)
    assert "not the key of" in expiry_words(replace(made, key=made.ca.with_name("ca.key")))


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (826, r"a\.example\.com\.pem: expired on \d{4}-"),
        (-1, "valid only from .* is this machine's clock right"),
        (4000, r"ca\.pem: exp"),
    ],
)
def test_a_certificate_is_good_for_its_time_only(made: Tls, days: int, words: str) -> None:
    with pytest.raises(CertificateFault, match=words):
        check_certificates(made, now=NOW + datetime.timedelta(days=days))


def test_a_certificate_is_for_its_hosts_only(made: Tls) -> None:
    with pytest.raises(CertificateFault, match=r"it is not for c\.example\.com, but for a\.example\.com, 10\.0\.0\.1"):
        check_certificates(made, "c.example.com")


def test_another_authority_s_certificate_or_another_key_is_told(made: Tls, other: Tls) -> None:
    with pytest.raises(CertificateFault, match="it is not signed by the authority"):
        check_certificates(Tls(other.ca, made.cert, made.key))
    with pytest.raises(CertificateFault, match=f"this is not the key of {made.cert}"):
        check_certificates(Tls(made.ca, made.cert, other.key))


def test_files_that_are_none_are_told(made: Tls, tmp_path: Path) -> None:
    missing, garbage, open_key = tmp_path / "missing", tmp_path / "garbage", tmp_path / "open.key"
    garbage.write_text("not PEM")
    garbage.chmod(0o600)
    open_key.write_bytes(made.key.read_bytes())
    open_key.chmod(0o644)
    for files, words in (
        (Tls(missing, made.cert, made.key), f"{missing}: it cannot be read: No such file"),
        (Tls(made.ca, garbage, made.key), f"{garbage}: a certificate in PEM is expected"),
        (Tls(made.ca, made.cert, garbage), f"{garbage}: a key in PEM"),
        (Tls(made.ca, made.cert, open_key), f"{open_key}: everybody on this machine may read this key"),
    ):
        with pytest.raises(CertificateFault, match=words):
            check_certificates(files)
