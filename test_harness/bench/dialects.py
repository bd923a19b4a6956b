"""How one logical request looks on the wire, per kind of server.

Client end of the bench. A request is one or more HTTP exchanges on one kept-alive connection:
OpenAI chat is one, ours are two (POST /v1/tasks, then GET its stream). Invariant: ids are fresh
UUIDs in every request and cost one format each, so that the client stays cheap.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Protocol

PROMPT = "Tell me about the river and the house with green doors. " * 4  # 228 bytes
DEADLINE_MS = 600_000  # far: no task of the bench may end at its deadline
CTX = 4096  # tokens; below what the fake engine offers


class Dialect(Protocol):
    """What the load client asks of a protocol."""

    tokens: int
    """Tokens that every request must bring; 0 where none is read."""

    def first(self, number: int) -> bytes:
        """The first HTTP request of logical request `number`."""

    def follow(self, number: int, exchange: int) -> bytes | None:
        """The HTTP request after exchange `exchange` (from 0) ended well; None when done."""

    def streams(self, exchange: int) -> bool:
        """Whether this exchange brings the tokens, as SSE."""

    def count(self, events: bytes) -> int:
        """Tokens in these whole SSE events."""

    def ended(self, events: bytes) -> bool:
        """Whether these whole SSE events hold the end of a stream that went well."""


def http_request(
    method: str, target: str, fields: dict[str, str], body: bytes | None = None
) -> bytes:
    """One HTTP/1.1 request with a length where it has a body."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


class OpenAiChat:
    """POST /v1/chat/completions with a stream: what routers of this field relay."""

    def __init__(self, host: str, tokens: int, model: str = "fake") -> None:
        self.tokens = tokens
        body = {
            "model": model,
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": PROMPT}],
        }
        fields = {"Host": host, "Accept": "text/event-stream"}
        self._request = http_request(
            "POST", "/v1/chat/completions", fields, json.dumps(body).encode()
        )

    def first(self, number: int) -> bytes:
        """Always the same bytes."""
        return self._request

    def follow(self, number: int, exchange: int) -> bytes | None:
        """One exchange is all."""
        return None

    def streams(self, exchange: int) -> bool:
        """It streams."""
        return True

    def count(self, events: bytes) -> int:
        """Every chunk with text; the role's chunk has none."""
        return events.count(b'"content":"') - events.count(b'"content":""')

    def ended(self, events: bytes) -> bool:
        """`[DONE]`."""
        return b"data: [DONE]" in events


TASK_SLOT = "ffffffff-ffff-4fff-8fff-fffffffffff0"
SESSION_SLOT = "ffffffff-ffff-4fff-8fff-fffffffffff1"


class OrchQueue:
    """POST /v1/tasks with fresh ids, then, unless `admit_only`, GET the task's stream."""

    def __init__(
        self, host: str, tokens: int, key: str, model_ref: str, *, admit_only: bool = False
    ) -> None:
        self.tokens = 0 if admit_only else tokens
        self._admit_only = admit_only
        # A v4-shaped UUID: 60 random bits for this run, the request's number in the last group.
        # The session differs from the task in the variant group.
        prefix = str(uuid.uuid4())[:19]
        self._task_prefix, self._session_prefix = prefix + "8000-", prefix + "8001-"
        fields = {"Host": host, "X-API-Key": key}
        body: dict[str, Any] = {
            "task_id": TASK_SLOT,
            "session_id": SESSION_SLOT,
            "workload": "completion",
            "model_ref": model_ref,
            "engine": "llamacpp",
            "ctx": CTX,
            "priority": "interactive",
            "max_tokens": tokens,
            "deadline_ms": DEADLINE_MS,
            "seed": 7,
            "prompt": PROMPT,
        }
        whole = http_request("POST", "/v1/tasks", fields, json.dumps(body).encode())
        self._before, _, rest = whole.partition(TASK_SLOT.encode())
        self._between, _, self._after = rest.partition(SESSION_SLOT.encode())
        reading = fields | {"Accept": "text/event-stream"}
        stream = http_request("GET", f"/v1/tasks/{TASK_SLOT}/stream", reading)
        self._get_before, _, self._get_after = stream.partition(TASK_SLOT.encode())

    def task_id(self, number: int) -> bytes:
        """The id of logical request `number`, unique over runs."""
        return f"{self._task_prefix}{number:012x}".encode()

    def first(self, number: int) -> bytes:
        """Admission."""
        session = f"{self._session_prefix}{number:012x}".encode()
        return b"".join((self._before, self.task_id(number), self._between, session, self._after))

    def follow(self, number: int, exchange: int) -> bytes | None:
        """The stream after the 202."""
        if self._admit_only or exchange > 0:
            return None
        return b"".join((self._get_before, self.task_id(number), self._get_after))

    def streams(self, exchange: int) -> bool:
        """The second exchange does."""
        return exchange == 1

    def count(self, events: bytes) -> int:
        """`token` events."""
        return events.count(b"event: token\n")

    def ended(self, events: bytes) -> bool:
        """The `end` event; an `error` is not a good end."""
        return b"event: end\n" in events
