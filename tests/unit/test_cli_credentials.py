"""Where the root credentials come from, and who can read them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cli.credentials import (
    Credentials,
    CredentialsSource,
    from_environment,
    generate,
    keep,
    load,
)
from engine.errors import ConfigError
from tests.support.logs import Logs


def load_or_create(folder: Path) -> CredentialsSource:
    return keep(folder, load(folder) or generate())


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_start_makes_keys_that_only_the_owner_reads(tmp_path: Path) -> None:
    made = load_or_create(tmp_path)
    path = tmp_path / "credentials.json"
    assert made.where == str(path)
    assert mode_of(path) == 0o600
    assert len(made.credentials.access_key) == 20
    assert len(made.credentials.secret_key) == 40
    assert [entry.name for entry in tmp_path.iterdir()] == ["credentials.json"]


def test_later_starts_keep_the_keys(tmp_path: Path) -> None:
    assert load_or_create(tmp_path) == load_or_create(tmp_path)


def test_two_stores_have_different_keys() -> None:
    assert generate() != generate()


def test_keys_that_others_could_read_are_closed_with_a_warning(tmp_path: Path, logs: Logs) -> None:
    load_or_create(tmp_path)
    path = tmp_path / "credentials.json"
    path.chmod(0o644)
    logs.expect("mode set to 0600")
    load_or_create(tmp_path)
    assert mode_of(path) == 0o600
    assert any("0600" in event for event in logs.events)


def test_credentials_of_the_store_put_those_of_the_folder_aside(tmp_path: Path, logs: Logs) -> None:
    before = load_or_create(tmp_path).credentials
    logs.expect("put aside")
    keep(tmp_path, Credentials("STORES", "store's own secret"))
    assert load(tmp_path) == Credentials("STORES", "store's own secret")
    aside = tmp_path / "credentials.replaced.json"
    assert before.secret_key in aside.read_text()
    assert mode_of(aside) == 0o600


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"access_key": "abc"}', '{"access_key": "a", "secret_key": "12345678"}'],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"credentials\.json"):
        load_or_create(tmp_path)
    assert path.read_text() == content


def test_the_environment_gives_both_keys_or_none() -> None:
    assert from_environment({}) is None
    assert from_environment({"LODE_ACCESS_KEY": "", "LODE_SECRET_KEY": ""}) is None
    assert from_environment(
        {"LODE_ACCESS_KEY": "access", "LODE_SECRET_KEY": "secretsecret"}
    ) == Credentials("access", "secretsecret")


@pytest.mark.parametrize(
    ("access", "secret", "said"),
    [
        ("access", "", "LODE_ACCESS_KEY is set and LODE_SECRET_KEY is not"),
        ("", "secretsecret", "LODE_SECRET_KEY is set and LODE_ACCESS_KEY is not"),
        ("ab", "secretsecret", "an access key has"),
        ("a/b/c", "secretsecret", "an access key has"),
        ("access", "short", "a secret key has"),
        ("access", "sëcretsecret", "a secret key has"),
    ],
)
def test_keys_that_cannot_be_are_refused(access: str, secret: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        from_environment({"LODE_ACCESS_KEY": access, "LODE_SECRET_KEY": secret})
    assert not secret or secret not in str(caught.value)


def test_a_secret_never_shows_in_a_repr() -> None:
    made = generate()
    assert made.secret_key not in repr(made)
