"""boto3 over HTTPS, where it sends unsigned chunks with a trailing checksum."""

from __future__ import annotations

import io
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.support.clients import MIB, error_code, s3_client
from tests.support.server import Server, serving_coded


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(store_folder: Path, authority: trustme.CA) -> Iterator[Server]:
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(str(store_folder / "key.pem"))
    for number, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(str(store_folder / "cert.pem"), append=number > 0)
    authority.cert_pem.write_to_path(str(store_folder / "ca.pem"))
    with serving_coded(
        store_folder,
        *("--tls-cert", str(store_folder / "cert.pem")),
        *("--tls-key", str(store_folder / "key.pem")),
    ) as server:
        yield server
        assert server.stop() == 0
    assert server.troubles == []


@pytest.fixture(scope="module")
def s3(server: Server, store_folder: Path) -> Iterator[Any]:
    assert server.url.startswith("https://")
    client = s3_client(server, verify=str(store_folder / "ca.pem"))
    yield client
    client.close()


@pytest.mark.parametrize("size", [0, 5, 100_000, 9_000_001])
@pytest.mark.parametrize("algorithm", ["CRC32", "CRC64NVME", "SHA256"])
def test_trailing_checksums_are_checked_and_kept(
    s3: Any, bucket: str, size: int, algorithm: str
) -> None:
    sent: list[Any] = []
    s3.meta.events.register_last(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
    )
    body = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(body), ChecksumAlgorithm=algorithm)
    assert sent[0]["X-Amz-Content-SHA256"] == b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == body
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]


def test_a_wrong_trailing_checksum_stores_nothing(s3: Any, bucket: str) -> None:
    def spoil(request: Any, **_: Any) -> None:
        class Spoilt(type(request.body)):  # type: ignore[misc]  # botocore has no types
            def _make_chunk(self) -> bytes:
                chunk: bytes = super()._make_chunk()
                return chunk.replace(b"x-amz-checksum-crc32:", b"x-amz-checksum-crc32:AAAA")

        request.body.__class__ = Spoilt

    s3.meta.events.register("before-send.s3.PutObject", spoil)
    try:
        with pytest.raises(ClientError) as raised:
            s3.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(b"x" * 500_000))
    finally:
        s3.meta.events.unregister("before-send.s3.PutObject", spoil)
    assert error_code(raised)[0] == 400
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_uploads_in_parts_come_back_as_one(s3: Any, bucket: str) -> None:
    body = os.urandom(17 * MIB)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_fileobj(io.BytesIO(body), bucket, "k", Config=config)
    assert s3.head_object(Bucket=bucket, Key="k")["ETag"].endswith('-4"')
    into = io.BytesIO()
    s3.download_fileobj(bucket, "k", into, Config=config)
    assert into.getvalue() == body


def test_a_client_that_does_not_know_the_authority_is_not_served(server: Server) -> None:
    with pytest.raises(urllib.error.URLError) as raised:
        urllib.request.urlopen(server.url, timeout=10, context=ssl.create_default_context())
    assert isinstance(raised.value.reason, ssl.SSLCertVerificationError)
