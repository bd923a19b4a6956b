"""Log lines of JSON without secrets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from orchestratord.infra.logging import FLUSH_BYTES, LineBuffer, configure_logging

SECRET = 'k3y"wïth\\ödd chars'


@pytest.fixture
def sink() -> Iterator[io.BytesIO]:
    before = structlog.get_config()
    yield io.BytesIO()
    structlog.configure(**before)


def lines(sink: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sink.getvalue().splitlines()]


@pytest.mark.req("ORCH-3027", partial="all but the form")
def test_a_call_becomes_one_line_of_json(sink: io.BytesIO) -> None:
    buffer = configure_logging(stream=sink)
    log = structlog.get_logger()

    log.info("task.ended", job_id="j1", tokens_out=4, cause="two\nlines", path=None)
    log.warning("replica.lost", error=ValueError("gone"))
    buffer.flush()

    first, second = lines(sink)
    assert first.pop("at_ms") > 1_700_000_000_000
    assert first == {
        "event": "task.ended",
        "level": "info",
        "job_id": "j1",
        "tokens_out": 4,
        "cause": "two\nlines",
        "path": None,
    }
    assert (second["level"], second["error"]) == ("warning", "gone")


def test_debug_is_not_written_and_an_exception_has_its_traceback(sink: io.BytesIO) -> None:
    buffer = configure_logging(stream=sink)
    log = structlog.get_logger()

    log.debug("noise")
    try:
        raise ValueError("broken")
    except ValueError as error:
        log.exception("tick.failed")
        log.error("request.failed", exc_info=error)
    buffer.flush()

    first, second = lines(sink)
    assert [first["event"], second["event"]] == ["tick.failed", "request.failed"]
    assert first["level"] == second["level"] == "error"
    assert "ValueError: broken" in first["exception"]
    assert "ValueError: broken" in second["exception"]


def test_bound_fields_are_on_every_line(sink: io.BytesIO) -> None:
    buffer = configure_logging(stream=sink)
    log = structlog.get_logger().bind(pool_id="p", shard=1)

    log.info("one", shard=2)
    log.unbind("pool_id").info("two")
    buffer.flush()

    first, second = lines(sink)
    assert (first["pool_id"], first["shard"]) == ("p", 2)
    assert "pool_id" not in second


class TestSecrets:
    """OC-CTRL-2041: whatever the field, however deep."""

    @pytest.mark.req("OC-CTRL-2041")
    @pytest.mark.parametrize("secret", ["sk-123456", SECRET])
    def test_a_known_secret_is_replaced_in_any_field(self, sink: io.BytesIO, secret: str) -> None:
        buffer = configure_logging([secret], sink)
        log = structlog.get_logger()

        log.info(f"event {secret}", cause=f"x{secret}y", nested={"a": [secret]}, **{secret: 1})
        log.bind(bound=secret).error("again", exc_info=ValueError(secret))
        buffer.flush()

        text = sink.getvalue().decode()
        assert secret not in text
        assert json.dumps(secret, ensure_ascii=False)[1:-1] not in text
        first = lines(sink)[0]
        assert first["cause"] == "x[redacted]y"
        assert first["nested"] == {"a": ["[redacted]"]}

    @pytest.mark.req("OC-CTRL-2041")
    @pytest.mark.parametrize("name", ["authorization", "api_key", "x-api-key", "password", "token"])
    def test_fields_that_hold_secrets_are_replaced_whatever_they_hold(
        self, sink: io.BytesIO, name: str
    ) -> None:
        buffer = configure_logging(stream=sink)

        structlog.get_logger().info("request", **{name: "never seen before"})
        buffer.flush()

        assert lines(sink)[0][name] == "[redacted]"

    def test_a_short_text_is_no_secret(self, sink: io.BytesIO) -> None:
        buffer = configure_logging(["abc", ""], sink)

        structlog.get_logger().info("abc")
        buffer.flush()

        assert lines(sink)[0]["event"] == "abc"


class TestBuffer:
    def test_lines_wait_until_they_are_flushed_and_leave_once(self) -> None:
        sink = io.BytesIO()
        buffer = LineBuffer(sink)
        buffer.write(b"one")
        buffer.write(b"two")
        assert sink.getvalue() == b""

        buffer.flush()
        buffer.flush()

        assert sink.getvalue() == b"one\ntwo\n"

    def test_a_full_buffer_is_written_by_itself(self) -> None:
        sink = io.BytesIO()
        buffer = LineBuffer(sink)
        line = b"x" * 1000

        for _ in range(FLUSH_BYTES // len(line)):
            buffer.write(line)
        assert sink.getvalue() == b""
        buffer.write(line)

        assert sink.getvalue().count(b"\n") == FLUSH_BYTES // len(line) + 1

    def test_a_log_that_nobody_can_read_ends_nothing(self) -> None:
        class Gone(io.BytesIO):
            def write(self, _data: Any) -> int:
                raise BrokenPipeError

        buffer = LineBuffer(Gone())
        buffer.write(b"one")

        buffer.flush()
        buffer.flush()
