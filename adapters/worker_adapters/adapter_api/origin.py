"""Where an engine lives: its base URL, taken apart once when a client is made.

Both the streaming and the control connections of a client are built from one `Origin`.
Invariant: host, port and path are validated here, so that nothing which came from configuration
can break out of a request head. Requirements: ORCH-3054.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host, port and path prefix (without a trailing slash) of an engine's base URL."""

    host: str
    port: int
    tls: bool
    base_path: str

    @classmethod
    def of(cls, url: str) -> Origin:
        """Parse `url`.

        Raises:
            ValueError: not http(s), no host, a bad port, credentials, a query or a fragment.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"engine url {url!r}: must be http(s)://host[:port][/path]")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"engine url {url!r}: no credentials, query or fragment allowed")
        if not url.isascii() or any(char.isspace() or not char.isprintable() for char in url):
            raise ValueError(f"engine url {url!r}: must be printable ASCII without spaces")
        tls = parts.scheme == "https"
        port = parts.port if parts.port is not None else (443 if tls else 80)
        return cls(parts.hostname, port, tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """`host:port`, as a Host header and as messages show it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def base_url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.authority}{self.base_path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the engine shares this host, and so this host's files."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
