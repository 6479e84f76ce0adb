"""What people write on a command line, and what is made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.arguments import Address, format_bytes, normalize, parse_duration, parse_size, split_list
from engine.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        (
            ["serve", "--drives", "a", "b", "c", "--profile", "2+1"],
            ["serve", "--drives", "a", "--drives", "b", "--drives", "c", "--profile", "2+1"],
        ),
        (
            ["serve", "--drives", "a", "--drives", "b", "c"],
            ["serve", "--drives", "a", "--drives", "b", "--drives", "c"],
        ),
        (["serve", "--drives=a,b", "--s3", ":1"], ["serve", "--drives=a,b", "--s3", ":1"]),
        (["serve", "--drives", "--s3", ":1"], ["serve", "--drives", "--s3", ":1"]),
        (["serve", "--data", "d", "--debug"], ["--debug", "serve", "--data", "d"]),
        (["x", "--", "--drives", "a", "b"], ["x", "--", "--drives", "a", "b"]),
    ],
)
def test_several_values_may_follow_drives(written: list[str], understood: list[str]) -> None:
    assert normalize(written) == understood


@given(st.lists(st.sampled_from(["serve", "--data", "d", "--s3", ":1", "--json", "x"])))
def test_lines_without_special_options_stay_as_they_are(arguments: list[str]) -> None:
    assert normalize(arguments) == arguments


@given(st.lists(st.text(alphabet="abc/", min_size=1), min_size=1, max_size=5))
def test_spread_and_repeated_drives_mean_the_same(drives: list[str]) -> None:
    repeated = [word for drive in drives for word in ("--drives", drive)]
    assert normalize(["serve", "--drives", *drives]) == ["serve", *repeated]
    assert normalize(["serve", *repeated]) == ["serve", *repeated]


def test_comma_lists_are_taken_apart_without_empty_items() -> None:
    assert split_list(["a,b", "c", ",d,"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000),
        (":80", "", 80),
        ("[::1]:0", "::1", 0),
        ("s3.example.org:443", "s3.example.org", 443),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "9000", "host", "host:", "host:x", "h:65536", "::1:9000", "h:²"]
)
def test_a_bad_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("15m", 900),
        ("24h", 86400),
        ("7d", 604800),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1", "5x", "h", "1h30m", "inf", "nan"])
def test_a_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 49, "1.5 PiB")],
)
def test_sizes_are_shown_in_binary_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("512K", 512 << 10),
        ("64 MiB", 64 << 20),
        ("10g", 10 << 30),
        ("1.5T", 3 << 39),
        ("2GB", 2_000_000_000),
        ("3P", 3 << 50),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1.G", "1e3", "1 000", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)
