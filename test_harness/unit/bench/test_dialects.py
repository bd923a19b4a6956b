"""What the load client writes and how it reads the streams."""

from __future__ import annotations

import json
import uuid
from typing import Any

from bench.dialects import OpenAiChat, OrchQueue

HOST = "127.0.0.1:1"


def parse(request: bytes) -> tuple[str, dict[str, str], Any]:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    named = dict(field.split(": ", 1) for field in fields)
    return line, {name.lower(): value for name, value in named.items()}, body


class TestOrchQueue:
    def test_every_task_has_fresh_well_formed_ids(self) -> None:
        runs = [OrchQueue(HOST, 1, "secret", "repo:m") for _ in range(2)]

        bodies = [json.loads(parse(run.first(i))[2]) for run in runs for i in range(50)]

        ids = [body["task_id"] for body in bodies] + [body["session_id"] for body in bodies]
        assert len(set(ids)) == 200
        assert all(uuid.UUID(one).version == 4 and str(uuid.UUID(one)) == one for one in ids)

    def test_admission_carries_key_length_and_the_asked_tokens(self) -> None:
        dialect = OrchQueue(HOST, 17, "secret", "repo:m")

        line, fields, body = parse(dialect.first(3))

        assert line == "POST /v1/tasks HTTP/1.1"
        assert fields["x-api-key"] == "secret"
        assert int(fields["content-length"]) == len(body)
        assert json.loads(body)["max_tokens"] == 17

    def test_the_stream_of_the_same_task_follows_and_nothing_after_it(self) -> None:
        dialect = OrchQueue(HOST, 1, "secret", "repo:m")
        task_id = json.loads(parse(dialect.first(9))[2])["task_id"]

        follow = dialect.follow(9, 0)
        line, fields, body = parse(follow or b"")

        assert line == f"GET /v1/tasks/{task_id}/stream HTTP/1.1"
        assert (fields["x-api-key"], body) == ("secret", b"")
        assert dialect.follow(9, 1) is None
        assert (dialect.streams(0), dialect.streams(1)) == (False, True)

    def test_admission_alone_reads_no_tokens(self) -> None:
        dialect = OrchQueue(HOST, 5, "secret", "repo:m", admit_only=True)

        assert dialect.follow(0, 0) is None
        assert dialect.tokens == 0
        assert json.loads(parse(dialect.first(0))[2])["max_tokens"] == 5

    def test_only_token_events_count_and_an_error_is_no_good_end(self) -> None:
        dialect = OrchQueue(HOST, 2, "secret", "repo:m")
        events = (
            b'event: started\nid: 1\ndata: {"queue_position":0}\n\n'
            b'event: token\nid: 2\ndata: {"t":"event: token","i":0}\n\n'
            b"event: metrics\ndata: {}\n\n"
            b'event: token\nid: 3\ndata: {"t":" b","i":1}\n\n'
        )

        assert dialect.count(events) == 2
        assert not dialect.ended(events + b"event: error\nid: 4\ndata: {}\n\n")
        assert dialect.ended(events + b"event: end\nid: 4\ndata: {}\n\n")


class TestOpenAiChat:
    def test_the_role_chunk_is_no_token(self) -> None:
        dialect = OpenAiChat(HOST, 1)
        events = (
            b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
            b'data: {"choices":[{"delta":{"content":" a"}}]}\n\n'
        )

        assert dialect.count(events) == 1
        assert not dialect.ended(events)
        assert dialect.ended(b"data: [DONE]\n\n")
