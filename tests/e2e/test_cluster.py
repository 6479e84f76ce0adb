"""A cluster of real daemons and gateways: grown, hurt, healed, emptied, and checked throughout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.clients import MIB, s3_client
from tests.support.daemons import Daemons, daemons
from tests.support.server import lode, serving

SIZES = [300, 40_000, 200_000, 700_000, 3 * MIB]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Daemons]:
    with daemons(tmp_path) as made:
        yield made
    shutil.rmtree(tmp_path)


def fill(s3: Any, prefix: str, bodies: dict[str, bytes]) -> None:
    for number in range(12):
        key = f"{prefix}/{number}"
        bodies[key] = os.urandom(SIZES[number % len(SIZES)])
        s3.put_object(Bucket="box", Key=key, Body=bodies[key])


def check(s3: Any, bodies: dict[str, bytes]) -> None:
    for key, body in bodies.items():
        assert s3.get_object(Bucket="box", Key=key)["Body"].read() == body, key


def test_a_cluster_grows_loses_a_member_gets_it_back_and_is_drained(cluster: Daemons) -> None:
    bodies: dict[str, bytes] = {}
    cluster.add("m1", "m2", "m3", "m4", "m5", "m6")
    with cluster.gateway() as first, cluster.gateway() as second:
        one, other = s3_client(first), s3_client(second)
        one.create_bucket(Bucket="box")
        fill(one, "six", bodies)
        check(other, bodies)

        # One more: it gets its share, and both gateways find everything.
        address = cluster.start("m7")
        cluster.run("node", "add", address, "--wait")
        assert cluster.is_whole()
        shares = {drive["member"]: drive["fragments"] for drive in cluster.status()["drives"]}
        assert shares["m7"] > 0
        fill(other, "seven", bodies)
        check(one, bodies)

        # One dies: what it had is made anew on the others.
        cluster.kill("m2")
        check(one, bodies)
        fill(other, "around", bodies)
        cluster.wait_until(lambda: cluster.healths()["m2"] == "lost")
        cluster.wait_until(cluster.is_whole)
        check(other, bodies)
        report = cluster.json("fsck", "--deep")
        assert report["clean"], report

        # It comes back, with its old bytes: they go, and it gets its share again.
        cluster.start("m2")
        cluster.wait_until(lambda: cluster.all_up() and cluster.is_whole())

        # One is emptied and taken out.
        cluster.run("node", "drain", "m5", "--wait")
        cluster.run("node", "remove", "m5")
        cluster.kill("m5")
        assert "m5" not in cluster.healths()
        check(one, bodies)
        one.close()
        other.close()
        assert first.stop() == second.stop() == 0
    report = cluster.json("fsck", "--deep")
    assert report["clean"], report


def test_a_dead_member_is_replaced_by_an_empty_machine(cluster: Daemons) -> None:
    bodies: dict[str, bytes] = {}
    cluster.add("m1", "m2", "m3", "m4", "m5", "m6")
    with cluster.gateway("--repair-rate", "100M") as server:
        s3 = s3_client(server)
        s3.create_bucket(Bucket="box")
        fill(s3, "old", bodies)
        cluster.kill("m4")
        # With one of six gone, writing goes on, and what is missing is queued.
        fill(s3, "degraded", bodies)
        cluster.wait_until(lambda: cluster.healths()["m4"] in ("down", "lost"))
        unasked = lode("fsck", "--data", str(cluster.store), "--json")
        assert unasked.returncode == 1
        assert not json.loads(unasked.stdout)["clean"]
        done = cluster.json("node", "replace", "m4", cluster.start("new"), "--wait")
        assert done == {"member": "m4", "how": "taken over"}
        cluster.wait_until(cluster.is_whole)
        check(s3, bodies)
        s3.close()
        assert server.stop() == 0
    report = cluster.json("fsck", "--deep")
    assert report["clean"], report


def test_drives_of_a_store_become_those_of_a_member(tmp_path: Path) -> None:
    """How one machine becomes a cluster: the same drives, behind a daemon."""
    store, drives = tmp_path / "store", [str(tmp_path / f"d{number}") for number in (1, 2, 3)]
    with serving(store, "--workers", "1", "--profile", "2+1", "--drives", *drives) as server:
        s3 = s3_client(server)
        s3.create_bucket(Bucket="box")
        bodies: dict[str, bytes] = {}
        fill(s3, "alone", bodies)
        s3.close()
        assert server.stop() == 0
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(lode("cluster", "secret", "--data", str(store)).stdout)
    with serving(
        tmp_path / "m1",
        *("--name", "m1", "--secret-file", str(key), "--drives", *drives),
        command=("node", "--listen"),
    ) as member:
        address = member.node_url.removeprefix("http://")
        added = lode("node", "add", address, "--data", str(store), "--json")
        assert added.returncode == 0, added.stderr
        assert sorted(json.loads(added.stdout)["drives"]) == drives
        with serving(store, "--workers", "1") as server:
            s3 = s3_client(server)
            check(s3, bodies)
            fill(s3, "member", bodies)
            check(s3, bodies)
            s3.close()
            assert server.stop() == 0
        shown = json.loads(lode("status", "--data", str(store), "--json").stdout)
        assert {drive["member"] for drive in shown["drives"]} == {"m1"}
        assert json.loads(lode("fsck", "--data", str(store), "--json").stdout)["clean"]
    shutil.rmtree(tmp_path)


def test_gateway_and_members_show_each_other_certificates(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    other.cert_pem.write_to_path(tmp_path / "other.pem")
    for name, issuer in (("member", authority), ("gateway", authority), ("stranger", other)):
        issued = issuer.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")

    def shown(name: str) -> dict[str, str]:
        return {
            "LODE_MEMBER_CA": str(tmp_path / "ca.pem"),
            "LODE_MEMBER_CERT": str(tmp_path / f"{name}.pem"),
            "LODE_MEMBER_KEY": str(tmp_path / f"{name}.key"),
        }

    tls = (
        *("--tls-cert", str(tmp_path / "member.pem"), "--tls-key", str(tmp_path / "member.key")),
        *("--tls-ca", str(tmp_path / "ca.pem")),
    )
    with daemons(tmp_path, profile="1+0") as cluster:
        address = cluster.start("m1", *tls).removeprefix("https://")
        add = ("node", "add", address, "--data", str(cluster.store))
        assert lode(*add).returncode == 1
        assert lode(*add, environment=shown("stranger")).returncode == 1
        added = lode(*add, environment=shown("gateway"))
        assert added.returncode == 0, added.stderr
        with serving(cluster.store, "--workers", "1", environment=shown("gateway")) as server:
            s3 = s3_client(server)
            s3.create_bucket(Bucket="box")
            s3.put_object(Bucket="box", Key="key", Body=bytes(100_000))
            assert s3.get_object(Bucket="box", Key="key")["Body"].read() == bytes(100_000)
            s3.close()
            assert server.stop() == 0
    shutil.rmtree(tmp_path)
