"""Nodes of other machines: the wire protocol of a cluster's members, both sides of it.

docs/cluster-wire.md describes what goes over the wire. ``messages`` is what both sides say,
``auth`` how they trust each other; ``client`` and ``remote`` are the gateway's side, ``service``
and ``shelf`` the member's.
"""
