"""One HTTP exchange for the typed clients: what both flavours share, and the blocking one.

Sits between a generated client method and the socket. Invariant: whatever goes wrong leaves as one
exception class, `OrchError`, which says whether and when trying again helps (ORCH-2006, ORCH-2007,
ORCH-3025). Redirects are not followed: a key must not travel to another host.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPMessage
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

UNREACHABLE = "UNREACHABLE"
STREAM_GAP = "STREAM_GAP"
BAD_RESPONSE = "BAD_RESPONSE"
# Codes of the client itself; the service's own are ORCH-2006.
CLIENT_CODES = frozenset({UNREACHABLE, STREAM_GAP, BAD_RESPONSE})

# An error body is a one-line envelope; more than this is somebody else's page.
ERROR_BODY_BYTES_MAX = 64 * 1024
# One read of a stream; a token event is some 50 bytes.
READ_BYTES = 64 * 1024
# Unary calls answer within milliseconds; a journal under load may take a second.
DEFAULT_TIMEOUT_S = 30.0

T = TypeVar("T")


class OrchError(Exception):
    """The service refused, the stream broke for good, or the service could not be reached.

    `code` is one of ORCH-2006, or UNREACHABLE (no connection, or one that broke), STREAM_GAP (an
    event is missing) or BAD_RESPONSE (not what the contract says). `status` is 0 where no response
    exists. `retry_after_ms` is None where coming back later is not promised to help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        engine: str | None = None,
        pool_id: str | None = None,
        retriable: bool = False,
        retry_after_ms: int | None = None,
        policy_label: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        self.engine = engine
        self.pool_id = pool_id
        self.retriable = retriable
        self.retry_after_ms = retry_after_ms
        self.policy_label = policy_label
        self.correlation_id = correlation_id


@dataclass(frozen=True, slots=True)
class Request:
    """One call: `path` is already escaped and starts with a slash; `body` is JSON or absent."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """One whole answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


Observer = Callable[[Response], None]


class _Lenient(msgspec.Struct):
    """The error envelope as a client reads it: unknown fields pass, wrong ones do not matter."""

    code: str = ""
    message: str = ""
    engine: str | None = None
    pool_id: str | None = None
    retriable: bool | None = None
    retry_after_ms: int | None = None
    policy_label: str | None = None


def error_from(response: Response) -> OrchError:
    """Return the typed error of a refused call, also where a proxy's page is the body."""
    try:
        envelope = msgspec.json.decode(response.body, type=_Lenient)
    except (msgspec.DecodeError, UnicodeDecodeError):
        envelope = _Lenient()
    retriable = envelope.retriable
    if retriable is None:
        # Without an envelope's word: what HTTP says may pass (RFC 9110, 15.6.3 to 15.6.5; RFC
        # 6585).
        retriable = not envelope.code and response.status in {429, 502, 503, 504}
    return OrchError(
        envelope.code or BAD_RESPONSE,
        envelope.message or f"the service answered {response.status} without an error envelope",
        status=response.status,
        engine=envelope.engine,
        pool_id=envelope.pool_id,
        retriable=retriable,
        retry_after_ms=_retry_after_ms(envelope.retry_after_ms, response.headers),
        policy_label=envelope.policy_label,
        correlation_id=response.headers.get("x-correlation-id"),
    )


def _retry_after_ms(from_body: int | None, headers: Mapping[str, str]) -> int | None:
    """The finest hint wins: body, X-Backoff-Ms, Retry-After in whole seconds (ORCH-2007)."""
    if from_body is not None:
        return from_body
    for name, unit_ms in (("x-backoff-ms", 1), ("retry-after", 1000)):
        text = headers.get(name, "")
        if text.isascii() and text.isdigit():
            return int(text) * unit_ms
    return None


def unreachable(error: BaseException, address: str) -> OrchError:
    """Return the typed error of a connection that was not made, or broke before the answer."""
    detail = str(error) or type(error).__name__
    return OrchError(UNREACHABLE, f"no answer from {address}: {detail}", retriable=True)


def decode(response: Response, type_: type[T]) -> T:
    """Decode the body of a success. Raises `OrchError` BAD_RESPONSE."""
    try:
        return msgspec.json.decode(response.body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OrchError(
            BAD_RESPONSE,
            f"the answer breaks the contract: {error}",
            status=response.status,
            correlation_id=response.headers.get("x-correlation-id"),
        ) from None


def path_of(
    template: str, *values: str, query: Mapping[str, str | int | None] | None = None
) -> str:
    """Fill the `{}` of a path; a value can never reach beyond its own segment."""
    path = template.format(*(quote(value, safe="") for value in values))
    pairs = {name: value for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(pairs)}" if pairs else path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the service is and how to enter: base URL (a path prefix is kept) and API key."""

    url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("the service's URL must look like http://HOST:PORT")
        if self.api_key is not None and not re.fullmatch(r"[!-~]+", self.api_key):
            raise ValueError("the API key must be visible ASCII characters, without spaces")
        # Raises ValueError on its own for a port that is no number.
        _ = parts.port

    @property
    def base(self) -> str:
        """The URL without its last slash."""
        return self.url.rstrip("/")

    def headers(self, request: Request) -> dict[str, str]:
        """All headers of one call."""
        headers = dict(request.headers)
        if self.api_key:
            headers["X-API-Key"] = self.api_key
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        return headers


class SyncTransport:
    """Calls over http.client, one connection each, so that any thread may use one client."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, observe: Observer | None) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._observe = observe

    def close(self) -> None:
        """Nothing stays open between calls; here so that both transports are used alike."""

    def send(self, request: Request) -> Response:
        """Make one call and return its success. Raises `OrchError`."""
        with self._exchange(request) as (_connection, raw):
            try:
                body = raw.read()
            except (http.client.HTTPException, OSError) as error:
                raise unreachable(error, self._endpoint.base) from None
            response = Response(raw.status, lower_names(raw.headers), body)
        if self._observe is not None:
            self._observe(response)
        return response

    @contextmanager
    def open_stream(
        self, request: Request, read_timeout_s: float
    ) -> Iterator[tuple[Response, Iterator[bytes]]]:
        """Open an event stream: its head and its bytes as they come. Raises `OrchError`."""
        with self._exchange(request) as (connection, raw):
            if isinstance(connection.sock, socket.socket):
                connection.sock.settimeout(read_timeout_s)
            head = Response(raw.status, lower_names(raw.headers))
            if self._observe is not None:
                self._observe(head)
            yield head, self._chunks(raw)

    def _chunks(self, raw: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := raw.read1(READ_BYTES):
                yield chunk
        except (http.client.HTTPException, OSError, ValueError) as error:
            # ValueError: http.client's own word for a chunk header that was cut.
            raise unreachable(error, self._endpoint.base) from None

    @contextmanager
    def _exchange(
        self, request: Request
    ) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
        parts = urlsplit(self._endpoint.base)
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                host, parts.port, timeout=self._timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=self._timeout_s)
        raw: http.client.HTTPResponse | None = None
        try:
            try:
                connection.request(
                    request.method,
                    parts.path + request.path,
                    body=request.body,
                    headers=self._endpoint.headers(request),
                )
                # A response with `Connection: close` takes the socket away from the connection.
                held = connection.sock
                raw = connection.getresponse()
                connection.sock = connection.sock or held
            except (http.client.HTTPException, OSError) as error:
                raise unreachable(error, self._endpoint.base) from None
            if not 200 <= raw.status < 300:
                try:
                    body = raw.read(ERROR_BODY_BYTES_MAX)
                except (http.client.HTTPException, OSError):
                    body = b""
                refusal = Response(raw.status, lower_names(raw.headers), body)
                if self._observe is not None:
                    self._observe(refusal)
                raise error_from(refusal)
            yield connection, raw
        finally:
            if raw is not None:
                raw.close()
            connection.close()


def lower_names(headers: Mapping[str, str] | HTTPMessage) -> dict[str, str]:
    """Return headers under lower-case names."""
    return {name.lower(): value for name, value in headers.items()}
