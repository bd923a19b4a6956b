"""Reads a file from an HTTP(S) mirror, from any byte on (RFC 9110 ranges, section 14).

Between an import and `urllib`. Invariants: nothing is read that nobody asked for (redirects are
followed without reading their bodies, answers other than 200 and 206 likewise); a URL's user,
password and query, which may be secrets, are never shown; from https nobody is led to http.
Requirements: ORCH-3042.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

REDIRECTS_MAX = 5
TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_SIZE = re.compile(r"\d{1,18}")
_VALIDATOR_CHARS_MAX = 512


class MirrorFailed(Exception):
    """The mirror did not give what was asked for; `cut`: worth another try from where it ended."""

    def __init__(self, message: str, *, cut: bool) -> None:
        super().__init__(message)
        self.cut = cut


class NotThere(MirrorFailed):
    """The mirror has no byte there (416): what is here is as long as its file, or longer."""


@dataclass(frozen=True, slots=True)
class MirrorBody:
    """The file from byte `offset` on. `total_bytes` is the whole file's size; `validator` goes into
    the next request's If-Range; both None where the mirror does not say."""

    offset: int
    total_bytes: int | None
    validator: str | None
    _response: Any

    def chunks(self) -> Iterator[bytes]:
        """The rest of the file, as it comes; ends early where the connection does. Raises
        `MirrorFailed`."""
        left = None if self.total_bytes is None else self.total_bytes - self.offset
        while left is None or left > 0:
            with _connection_errors("the mirror"):
                chunk = self._response.read1(
                    CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
                )
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk


def shown(url: str) -> str:
    """The URL without what may be a secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def mirror_url(url: str) -> SplitResult:
    """The URL's parts. Raises ValueError for one that cannot be a mirror's."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ValueError(f"the URL is none: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good:
        raise ValueError(f"{shown(url)} is no http:// or https:// URL of a host")
    if "@" in parts.netloc:
        raise ValueError(f"the URL of {shown(url)} carries a user or a password: leave them out")
    if not url.isascii() or any(ord(c) <= 0x20 or c == "\x7f" for c in url):
        raise ValueError(f"the URL of {shown(url)!a} has characters that must be percent-encoded")
    return parts


@contextlib.contextmanager
def mirror_body(
    url: str, offset: int, if_range: str | None, timeout_s: float = TIMEOUT_S
) -> Iterator[MirrorBody]:
    """The file at `url` from byte `offset` on, or from 0 where the mirror has no ranges or
    `if_range` says that the file has changed. `timeout_s` bounds each wait for the mirror.

    Raises `NotThere` where the file ends before `offset`, `MirrorFailed`, and ValueError for a URL
    that is none.
    """
    headers = {"User-Agent": "llama-orch", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if if_range is not None:
            headers["If-Range"] = if_range
    response = _followed(url, headers, timeout_s)
    try:
        yield _body(response, offset, shown(url))
    finally:
        response.close()


def _followed(url: str, headers: dict[str, str], timeout_s: float) -> Any:
    opener = urllib.request.OpenerDirector()
    # No handler for redirects and errors: urllib's would read their bodies whole, without a bound.
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler):
        opener.add_handler(handler())
    opener.add_handler(urllib.request.HTTPSHandler())
    for _ in range(REDIRECTS_MAX + 1):
        parts = mirror_url(url)
        with _connection_errors(shown(url)):
            response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout_s)
        if response.status not in _REDIRECTS:
            return response
        location = response.headers.get("Location")
        response.close()
        if not location:
            raise MirrorFailed(f"{shown(url)} redirects to nowhere", cut=False)
        url = urljoin(url, location)
        if parts.scheme == "https" and urlsplit(url).scheme != "https":
            raise MirrorFailed(f"{shown(url)}: redirected from https to less", cut=False)
    raise MirrorFailed(f"{shown(url)}: more than {REDIRECTS_MAX} redirects", cut=False)


def _body(response: Any, offset: int, name: str) -> MirrorBody:
    headers = response.headers
    if response.status == 416:
        raise NotThere(f"{name} has no byte {offset}", cut=False)
    if response.status not in (200, 206):
        text = f"{name} answers {response.status} {response.reason!a:.80}"
        raise MirrorFailed(text, cut=response.status in (408, 425, 429) or response.status >= 500)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise MirrorFailed(f"{name} answers with an encoding nobody asked for", cut=False)
    start, total_bytes = 0, None
    if response.status == 206:
        told = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if told is None or int(told[1]) != offset:
            raise MirrorFailed(f"{name} answers with a range nobody asked for", cut=False)
        start = offset
        total_bytes = None if told[3] == "*" else int(told[3])
    elif _SIZE.fullmatch(headers.get("Content-Length", "")):
        total_bytes = int(headers["Content-Length"])
    validator = headers.get("ETag") or headers.get("Last-Modified")
    if validator is not None and (validator.startswith("W/") or not _plain(validator)):
        validator = None  # a weak one says nothing of bytes (RFC 9110, section 13.1.5)
    return MirrorBody(start, total_bytes, validator, response)


def _plain(validator: str) -> bool:
    return (
        len(validator) <= _VALIDATOR_CHARS_MAX and validator.isascii() and validator.isprintable()
    )


@contextlib.contextmanager
def _connection_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise MirrorFailed(f"{name}: {words:.200}", cut=True) from None
