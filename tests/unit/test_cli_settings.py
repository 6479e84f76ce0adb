"""Option, environment, file, default: which wins, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.arguments import Address
from cli.settings import OPTION_NAMES, Settings, load_settings, variable_of
from engine.config import Profile
from engine.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "lode.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({}, {}, None)
    assert settings.data == tmp_path / "data"
    assert settings.s3 == Address("127.0.0.1", 9000)
    assert settings.drives == ()
    assert settings.profile is None
    assert 1 <= settings.workers <= 8


def test_option_beats_environment_beats_file(tmp_path: Path) -> None:
    file = write(tmp_path, 's3 = ":1"\nregion = "file"\nworkers = 3\n')
    environment = {"LODE_S3": ":2", "LODE_REGION": "environment", "LODE_WORKERS": ""}
    settings = load_settings({"s3": ":3", "region": None}, environment, file)
    assert settings.s3.port == 3
    assert settings.region == "environment"
    assert settings.workers == 3


def test_every_setting_can_stand_in_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        data = "store"
        drives = ["/mnt/a,b", "c"]
        profile = "1+1"
        s3 = "[::1]:9000"
        workers = 2
        tls-cert = "cert.pem"
        tls-key = "key.pem"
        domain = ["S3.Example.org."]
        region = "eu-1"
        grace = "2h"
        mount = "mnt"
        mount-cache-dir = "cache"
        mount-cache-size = "2G"
        mount-memory = 512
        log-level = "DEBUG"
        log-json = true
        """,
    )
    assert load_settings({}, {}, file) == Settings(
        data=tmp_path / "store",
        drives=(Path("/mnt/a,b"), tmp_path / "c"),
        profile=Profile(1, 1),
        s3=Address("::1", 9000),
        workers=2,
        tls_cert=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        domain=("s3.example.org",),
        region="eu-1",
        grace=7200.0,
        mount=tmp_path / "mnt",
        mount_cache_dir=tmp_path / "cache",
        mount_cache_size=2 << 30,
        mount_memory=512,
        log_level="debug",
        log_json=True,
    )


def test_the_store_gets_what_was_set(tmp_path: Path) -> None:
    options = {"data": str(tmp_path), "drives": "/a,/b", "profile": "1+1", "grace": "5"}
    store = load_settings(options, {}, None).store_config()
    assert store.data == tmp_path
    assert store.drives == (Path("/a"), Path("/b"))
    assert store.profile == Profile(1, 1)
    assert store.grace_s == 5.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workres = 2", r"unknown key 'workres' in .*lode\.toml: did you mean workers\?"),
        ("zzz = 2", r"unknown key 'zzz' in .*lode\.toml: known: .*data, "),
        ("workers = 0", r"workers in .*lode\.toml: expected a number from 1"),
        ("workers = true", r"workers in .*lode\.toml"),
        ("s3 = 9000", r"s3 in .*lode\.toml: expected text"),
        ('s3 = "x"', r"s3 in .*lode\.toml: address 'x'"),
        ("drives = [1]", r"drives in .*lode\.toml: expected a list"),
        ('profile = "4-2"', r"profile in .*lode\.toml: profile '4-2'"),
        ("grace = -1", r"grace in .*lode\.toml"),
        ("mount-memory = 15", r"mount-memory in .*lode\.toml: expected a number from 16"),
        ('mount-cache-size = "1G"', r"--mount-cache-size needs --mount-cache-dir"),
        ("log-json = 1", r"log-json in .*lode\.toml"),
        ("tls-cert = ", r"lode\.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_names_key_and_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings({}, {}, write(tmp_path, text))


def test_a_mistake_names_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"^LODE_WORKERS: "):
        load_settings({}, {"LODE_WORKERS": "many"}, None)
    with pytest.raises(ConfigError, match=r"^--workers: "):
        load_settings({"workers": "65"}, {}, None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        load_settings({}, {}, tmp_path / "absent.toml")


def test_a_drive_cannot_be_named_twice() -> None:
    with pytest.raises(ConfigError, match="/a is named twice"):
        load_settings({"drives": "/a,/b,/b/../a"}, {}, None)


def test_certificate_and_key_belong_together() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        load_settings({"tls-cert": "/c.pem"}, {}, None)


def test_names_are_the_same_everywhere() -> None:
    assert variable_of("tls-cert") == "LODE_TLS_CERT"
    assert {"data", "tls-cert", "log-json"} <= OPTION_NAMES
