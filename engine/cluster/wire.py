"""How members are reached: the seam between membership and the wire protocol."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Protocol

from engine.config import MemberTls
from engine.errors import ConfigError
from engine.ids import MemberId, NodeId
from engine.node.contract import Node
from engine.node.wire.auth import Secret
from engine.node.wire.client import MemberClient
from engine.node.wire.messages import MemberHealth
from engine.node.wire.remote import RemoteNode


class MemberCalls(Protocol):
    """Calls of one member; each raises NodeError."""

    async def health(self) -> MemberHealth: ...

    async def adopt(
        self, member: MemberId, store: str, drives: Mapping[str, NodeId]
    ) -> MemberHealth:
        """Make the daemon this member, and format its empty drives; see ``MemberClient``."""

    def node(self, node_id: NodeId) -> Node:
        """Return one of its drives as a node. The member need not answer for that."""

    async def aclose(self) -> None: ...


class Connect(Protocol):
    def __call__(self, address: str, secret: bytes) -> MemberCalls:
        """Return calls of the member at ``host:port``; nothing is sent yet.

        Raises: ConfigError.
        """


class _HttpMember:
    def __init__(self, client: MemberClient) -> None:
        self._client = client
        self.health = client.health
        self.adopt = client.adopt
        self.aclose = client.aclose

    def node(self, node_id: NodeId) -> Node:
        return RemoteNode(node_id, self._client)


def connect_over_http(tls: MemberTls | None) -> Connect:
    """Return how members are reached in earnest.

    Raises: ConfigError: a certificate cannot be used.
    """
    context: ssl.SSLContext | None = None
    if tls is not None:
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if tls.cert is not None:
                context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ConfigError(f"certificates for members: {error}") from None

    def connect(address: str, secret: bytes) -> MemberCalls:
        try:
            return _HttpMember(MemberClient(address, Secret(secret), tls=context))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    return connect
