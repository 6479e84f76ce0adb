"""Every bound that the HTTP server keeps, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds. Times are kept to within ``tick_s``."""

    connections: int = 4096
    """At this many, idle ones are closed to make room; with none idle, new clients wait."""
    request_line: int = 16 * KIB
    """Longer: 414. A presigned URL of a 1,024-byte key, percent-encoded, needs about 12 KiB."""
    header_bytes: int = 32 * KIB
    """All header lines together; more: 431."""
    header_count: int = 200
    """More: 431."""
    drain: int = 256 * KIB
    """An unread body up to so long is read and dropped to keep the connection; else it closes."""

    linger: int = 16 * 1024 * KIB
    """Before closing on a longer one, so much is read and dropped: a client that only sends until
    it has sent all of it then sees the answer, and not a broken pipe."""

    head_s: float = 30.0
    """From the first byte of a request to the end of its head (408), and for a TLS handshake."""
    idle_s: float = 75.0
    """A connection without a request is closed."""
    body_stall_s: float = 30.0
    """No byte of the body came for so long."""
    body_rate_min: float = 500.0
    """Bytes per second while we wait for the body, averaged, after ``body_stall_s`` of waiting."""
    send_stall_s: float = 60.0
    """The client took no byte for so long."""
    drain_s: float = 5.0
    """For dropping an unread body, and for waiting that a client takes our last answer."""
    aclose_s: float = 10.0
    """For closing a response's stream."""
    shutdown_s: float = 30.0
    """Running requests may take so long after shutdown begins."""
    tick_s: float = 1.0
    """How often stalled connections are looked for."""

    @property
    def head_bytes(self) -> int:
        """Return the longest head that can be allowed: request line and headers."""
        return self.request_line + self.header_bytes
