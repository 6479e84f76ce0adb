"""``lode node`` as an operator and a gateway meet it: real processes, curl, signals, TLS."""

from __future__ import annotations

import json
import os
import signal
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from cli.cluster_tls import gateway_tls
from engine.node.contract import NodeDown, NodeRefused
from engine.node.wire.auth import Secret
from engine.node.wire.client import MemberClient
from engine.node.wire.remote import RemoteNode
from tests.support.drives import STORE, content, fragment
from tests.support.logs import Logs
from tests.support.members import MEMBER, PATIENT, node_id
from tests.support.node_process import NodeProcess, running_node
from tests.support.server import lode

MIB = 1 << 20


@asynccontextmanager
async def gateway(
    daemon: NodeProcess, tls: ssl.SSLContext | None = None
) -> AsyncIterator[MemberClient]:
    client = MemberClient(daemon.address, daemon.secret, tls=tls, limits=PATIENT)
    try:
        yield client
    finally:
        await client.aclose()


async def adopt(client: MemberClient) -> list[RemoteNode]:
    folders = [drive.folder for drive in (await client.health()).drives]
    nodes = {folder: node_id(number) for number, folder in enumerate(folders, 1)}
    health = await client.adopt(MEMBER, STORE, nodes)
    assert [drive.state for drive in health.drives] == ["up"] * len(folders)
    return [RemoteNode(node, client) for node in nodes.values()]


async def store(node: RemoteNode, number: int, payload: bytes) -> None:
    writer = await node.open_writer(fragment(number), len(payload))
    await writer.write([payload])
    await writer.commit()


async def load(node: RemoteNode, number: int, size: int) -> bytes:
    payload = bytearray(size)
    await node.read_into(fragment(number), 0, [memoryview(payload)])
    return bytes(payload)


def curl(*arguments: str) -> str:
    return subprocess.run(
        ["curl", "--silent", "--show-error", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def status_of(url: str) -> int:
    return int(curl("--output", "/dev/null", "--write-out", "%{http_code}", url))


async def test_a_daemon_is_adopted_used_and_found_again_after_a_restart(tmp_path: Path) -> None:
    drives = ("--drives", str(tmp_path / "d1"), str(tmp_path / "d2"))
    place = ("--name", "m1", "--zone", "z", "--rack", "r", "--host", "h")
    with running_node(tmp_path / "m", *drives, *place) as daemon:
        async with gateway(daemon) as client:
            health = await client.health()
            assert (health.name, health.zone, health.rack, health.host) == ("m1", "z", "r", "h")
            assert [drive.state for drive in health.drives] == ["empty", "empty"]
            first, second = await adopt(client)
            await store(first, 1, content(1, 3 * MIB))
            await store(second, 2, content(2, 100))
        assert daemon.stop() == 0
        assert daemon.troubles == []
    # Without --drives: those that it had.
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            first, second = (RemoteNode(node_id(number), client) for number in (1, 2))
            assert await load(first, 1, 3 * MIB) == content(1, 3 * MIB)
            assert await load(second, 2, 100) == content(2, 100)
        assert daemon.stop() == 0
        assert daemon.troubles == []


async def test_what_was_acknowledged_survives_kill_9_and_nothing_half_written_shows(
    tmp_path: Path,
) -> None:
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            [node] = await adopt(client)
            for number in range(5):
                await store(node, number, content(number, 300_000))
            writer = await node.open_writer(fragment(9), MIB)
            await writer.write([content(9, 500_000)])
            daemon.stop(signal.SIGKILL)
            with pytest.raises(NodeDown):
                await writer.commit()
            with pytest.raises(NodeDown):
                await node.space()
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            node = RemoteNode(node_id(1), client)
            assert [info.fragment for info in await node.list(b"", 10)] == [
                fragment(number) for number in range(5)
            ]
            for number in range(5):
                assert await load(node, number, 300_000) == content(number, 300_000)


async def test_a_restart_at_the_same_address_is_not_noticed_by_later_calls(tmp_path: Path) -> None:
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            [node] = await adopt(client)
            await store(node, 1, b"kept")
            assert daemon.stop() == 0
            with running_node(tmp_path / "m", address=daemon.address):
                assert await load(node, 1, 4) == b"kept"


async def test_sigterm_lets_a_running_upload_end(tmp_path: Path) -> None:
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            [node] = await adopt(client)
            writer = await node.open_writer(fragment(1), 2 * MIB)
            await writer.write([content(1, 2 * MIB)[:MIB]])
            daemon.process.send_signal(signal.SIGTERM)
            with trio.fail_after(60):
                while await is_listening(daemon):  # noqa: ASYNC110  nothing tells
                    await trio.sleep(0.01)
            await writer.write([content(1, 2 * MIB)[MIB:]])
            await writer.commit()
        assert await trio.to_thread.run_sync(daemon.process.wait, 60) == 0
    with running_node(tmp_path / "m") as daemon:
        async with gateway(daemon) as client:
            node = RemoteNode(node_id(1), client)
            assert await load(node, 1, 2 * MIB) == content(1, 2 * MIB)


async def is_listening(daemon: NodeProcess) -> bool:
    host, _, port = daemon.address.rpartition(":")
    try:
        stream = await trio.open_tcp_stream(host, int(port))
    except OSError:
        return False
    await stream.aclose()
    return True


async def test_curl_reads_health_and_metrics_and_nothing_else(tmp_path: Path) -> None:
    with running_node(tmp_path / "m", "--name", "m1") as daemon:
        assert status_of(f"{daemon.url}/healthz") == 200
        assert status_of(f"{daemon.url}/readyz") == 503
        async with gateway(daemon) as client:
            [node] = await adopt(client)
            await store(node, 1, b"x" * 1000)
            await load(node, 1, 1000)
        assert status_of(f"{daemon.url}/readyz") == 200
        health = json.loads(curl(f"{daemon.url}/v1/health"))
        assert health["name"] == "m1"
        assert health["member"] == MEMBER.hex()
        [drive] = health["drives"]
        assert (drive["state"], drive["node"]) == ("up", node_id(1).hex())
        metrics = curl(f"{daemon.url}/metrics").splitlines()
        assert 'lode_node_requests_total{code="201",op="put"} 1.0' in metrics
        assert 'lode_node_requests_total{code="206",op="get"} 1.0' in metrics
        assert 'lode_node_bytes_total{direction="in"} 1000.0' in metrics
        name = node_id(1).hex()
        for path in ("space", "fragments", f"fragments/{fragment(1).hex()}"):
            assert status_of(f"{daemon.url}/v1/nodes/{name}/{path}") == 401
        for path in ("/v1/adopt", "/v1/compact", f"/v1/nodes/{name}/delete"):
            answer = curl("--request", "POST", "--data", "{}", daemon.url + path)
            assert json.loads(answer)["error"] == "refused"
        assert status_of(f"{daemon.url}/v1/nonsense") == 400


async def test_a_secret_comes_from_the_folder_a_file_or_the_environment(tmp_path: Path) -> None:
    with running_node(tmp_path / "m1") as daemon:
        made = Path(daemon.secret_path)
        assert made == tmp_path / "m1" / "cluster.key"
        assert stat.S_IMODE(os.stat(made).st_mode) == 0o600
        async with gateway(daemon) as client:
            await client.compact()
    with running_node(tmp_path / "m2", "--secret-file", str(made)) as daemon:
        assert daemon.secret_path == str(made)
        assert "cluster.key" not in os.listdir(tmp_path / "m2")
        async with gateway(daemon) as client:
            await client.compact()
    text = "a secret out of the environment"
    with running_node(tmp_path / "m3", environment={"LODE_CLUSTER_SECRET": text}) as daemon:
        assert daemon.secret_path == "environment"
        client = MemberClient(daemon.address, Secret(text.encode()), limits=PATIENT)
        await client.compact()
        await client.aclose()
        assert text not in json.dumps(daemon.log)


async def test_mutual_tls_lets_in_who_has_a_certificate_and_the_secret(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("^member refused$")
    ca = trustme.CA()
    for name in ("member", "gateway"):
        certificate = ca.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(tmp_path / f"{name}.pem"), append=True)
    authority = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(authority))
    key, cert = tmp_path / "gateway.key", tmp_path / "gateway.pem"
    arguments = ("--tls-cert", str(tmp_path / "member.pem"), "--tls-key")
    with running_node(
        tmp_path / "m", *arguments, str(tmp_path / "member.key"), "--tls-ca", str(authority)
    ) as daemon:
        assert daemon.url.startswith("https://")
        async with gateway(daemon, gateway_tls(cert, key, authority)) as client:
            [node] = await adopt(client)
            payload = content(1, 3 * MIB)
            await store(node, 1, payload)
            assert await load(node, 1, 3 * MIB) == payload
            assert await load(node, 1, 100) == payload[:100]
            writer = await node.open_writer(fragment(2), MIB)
            await writer.write([payload[:1000]])
            await writer.abort()
            assert [info.fragment for info in await node.list(b"", 9)] == [fragment(1)]
        for tls in (None, gateway_tls(None, None, authority), gateway_tls(cert, key, None)):
            async with gateway(daemon, tls) as client:
                with pytest.raises(NodeDown):
                    await client.compact()
        stranger = MemberClient(
            daemon.address,
            Secret(b"another secret altogether"),
            tls=gateway_tls(cert, key, authority),
            limits=PATIENT,
        )
        with pytest.raises(NodeRefused):
            await stranger.compact()
        await stranger.aclose()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "nonsense"], "--listen: address 'nonsense'"),
        (["--tls-cert", "c.pem"], "belong together"),
        (["--tls-ca", "ca.pem"], "--tls-ca needs"),
        (["--drives", "a", "b", "a"], "named twice"),
        (["--secret-file", "absent.key"], "no cluster secret in absent.key"),
        (["--log-level", "loud"], "--log-level: 'loud'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    options = ["--listen", "127.0.0.1:0", *arguments]
    done = lode("node", "--data", str(tmp_path / "m"), *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]


def test_a_second_daemon_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with running_node(tmp_path / "m"):
        done = lode("node", "--data", str(tmp_path / "m"), "--listen", "127.0.0.1:0")
        assert done.returncode == 2
        assert "another lode node uses it" in done.stderr


def test_a_damaged_note_of_what_the_member_is_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "node.json").write_text("{")
    done = lode("node", "--data", str(tmp_path / "m"), "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert "node.json is damaged" in done.stderr
