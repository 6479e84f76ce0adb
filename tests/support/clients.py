"""Real clients for the end-to-end tests, and real input for them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import blake3
import boto3
import pytest
from botocore.config import Config

from tests.support.server import Server

COMMAND_S = 300.0
MIB = 1 << 20


def s3_client(
    server: Server,
    *,
    keys: tuple[str, str] | None = None,
    url: str | None = None,
    verify: str | None = None,
    **config: Any,
) -> Any:  # boto3 has no types
    """Return a client with boto3's defaults but for ``config``, and without retries.

    A retry would hide an answer that a test should see.
    """
    access, secret = keys or server.credentials
    return boto3.client(
        "s3",
        endpoint_url=url or server.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        verify=verify,
        config=Config(**{"retries": {"total_max_attempts": 1}, **config}),
    )


def find_command(name: str) -> str:
    """Return a client's path; a test without its client fails, it is not skipped."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return str(beside)
    path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        pytest.fail(f"{name} is not installed: run `make setup-dev`", pytrace=False)
    return path


def run(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    status: int | None = 0,
    folder: Path | None = None,
    stdin: bytes | BinaryIO | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a client to its end and check its exit status; None takes any."""
    command = [find_command(str(arguments[0])), *map(str, arguments[1:])]
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(environment or {})},
        timeout=COMMAND_S,
        cwd=folder,
        **given,
    )
    if status is not None and done.returncode != status:
        said = (done.stdout[-2000:] + done.stderr[-4000:]).decode(errors="replace")
        pytest.fail(f"exit status {done.returncode}, not {status}: {command}\n{said}")
    return done


class Aws:
    """awscli with its defaults; call it with the arguments behind ``aws``."""

    def __init__(self, server: Server, folder: Path) -> None:
        access, secret = server.credentials
        self.environment = {
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.url,
            "AWS_CONFIG_FILE": str(folder / "aws-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws-credentials"),
            "AWS_MAX_ATTEMPTS": "1",
        }

    def __call__(self, *arguments: str | Path, status: int | None = 0, **more: Any) -> str:
        """Run it, check its exit status and return what it wrote."""
        done = run("aws", *arguments, environment=self.environment, status=status, **more)
        return done.stdout.decode() + (done.stderr.decode() if status != 0 else "")


class Rclone:
    """rclone with a remote ``lode:``; call it with the arguments behind ``rclone``."""

    def __init__(self, server: Server, folder: Path) -> None:
        access, secret = server.credentials
        self.environment = {
            "RCLONE_CONFIG": str(folder / "rclone.conf"),
            "RCLONE_CONFIG_LODE_TYPE": "s3",
            "RCLONE_CONFIG_LODE_PROVIDER": "Other",
            "RCLONE_CONFIG_LODE_ENDPOINT": server.url,
            "RCLONE_CONFIG_LODE_ACCESS_KEY_ID": access,
            "RCLONE_CONFIG_LODE_SECRET_ACCESS_KEY": secret,
            "RCLONE_CONFIG_LODE_REGION": "us-east-1",
            "RCLONE_RETRIES": "1",
            "RCLONE_LOW_LEVEL_RETRIES": "1",
        }
        (folder / "rclone.conf").touch()

    def __call__(self, *arguments: str | Path, status: int | None = 0, **more: Any) -> str:
        """Run it, check its exit status and return what it wrote on standard output."""
        done = run("rclone", *arguments, environment=self.environment, status=status, **more)
        return done.stdout.decode()


def copy_library(target: Path, *names: str) -> dict[str, Path]:
    """Copy the standard library's sources, or only the packages and modules named.

    Returns: the files by their path below ``target``, with ``/``.
    """
    library = Path(sysconfig.get_path("stdlib"))
    left_out = shutil.ignore_patterns("__pycache__", "site-packages", "config-*", "*.so", "*.a")
    for source in [library / name for name in names] or [library]:
        if source.is_dir():
            into = target if source == library else target / source.name
            shutil.copytree(source, into, ignore=left_out, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return files_below(target)


def files_below(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }


def random_blocks(size: int, *, seed: int) -> Iterator[bytes]:
    """Yield ``size`` bytes that no coding or compression can make smaller, in blocks of 1 MiB."""
    source = random.Random(seed)
    for offset in range(0, size, MIB):
        yield source.randbytes(min(MIB, size - offset))


def make_random_file(path: Path, size: int, *, seed: int) -> str:
    """Write such bytes and return their BLAKE3."""
    digest = blake3.blake3()
    with path.open("wb") as file:
        for block in random_blocks(size, seed=seed):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def hash_stream(stream: Any) -> tuple[int, str]:
    """Return the size and BLAKE3 of what ``stream.read(size)`` gives."""
    digest, size = blake3.blake3(), 0
    while block := stream.read(4 * MIB):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hash_stream(file)[1]


def error_code(raised: pytest.ExceptionInfo[Any]) -> tuple[int, str]:
    """Return status and code of a botocore ClientError."""
    response = raised.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]
