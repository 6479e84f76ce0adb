"""What certain clients need, each with the client named. Everything else is the same for all."""

from __future__ import annotations

from collections.abc import Mapping

DAV_CLASSES = "1, 2, 3"

_OFFICE = (
    "Microsoft Office Existence Discovery",
    "Microsoft Office Protocol Discovery",
    "Microsoft Office Core Storage Infrastructure",
)


def is_mac_file(name: str) -> bool:
    """Whether macOS puts such files beside others: resource forks, and how a folder looked."""
    return name.startswith("._") or name == ".DS_Store"


def asks_before_login(method: str, headers: Mapping[str, str]) -> bool:
    """Whether an agent of Microsoft's asks what this is before it sends credentials.

    Office sends OPTIONS for the folder and HEAD for it without credentials, also when it has
    some, and opens a document read-only if those are refused. It gets an
    answer that is the same whatever exists.
    Source: Microsoft, "Office 2010 WebDAV: authentication prompts", KB 2019105; wsgidav,
    ``hotfixes.win_accept_anonymous_options``.
    """
    if method not in ("OPTIONS", "HEAD") or "HTTP_AUTHORIZATION" in headers:
        return False
    agent = headers.get("HTTP_USER_AGENT", "")
    return agent.startswith(_OFFICE) or "Microsoft Office" in agent
