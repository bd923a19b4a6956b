"""What an engine prints: bounded, and good for a cause."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import structlog

from pool_managerd.engine_output import EngineOutput, last_words


def test_memory_keeps_the_end_and_the_file_turns_over_at_its_limit(tmp_path: Path) -> None:
    output = EngineOutput(tmp_path / "logs" / "a.log", tail_bytes=10, file_bytes=100)

    for number in range(60):
        output.write(b"line %02d\n" % number)
    output.close()

    assert output.tail() == b"8\nline 59\n"
    kept = (tmp_path / "logs" / "a.log.1").read_bytes() + (tmp_path / "logs" / "a.log").read_bytes()
    assert kept.endswith(b"line 58\nline 59\n")
    assert 100 < len(kept) <= 2 * 108
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_the_log_is_its_owners_only_and_is_continued(tmp_path: Path) -> None:
    for _ in range(2):
        output = EngineOutput(tmp_path / "a.log")
        output.write(b"x\n")
        output.close()

    assert (tmp_path / "a.log").read_bytes() == b"x\nx\n"
    assert stat.S_IMODE((tmp_path / "a.log").stat().st_mode) == 0o600


def test_a_new_life_does_not_quote_the_last_one(tmp_path: Path) -> None:
    output = EngineOutput(tmp_path / "a.log")
    output.write(b"died of this\n")

    output.begin()
    output.close()

    assert output.tail() == b""


def test_a_disk_that_refuses_costs_the_file_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = EngineOutput(tmp_path / "file" / "a.log")

    output.write(b"one\n")
    output.write(b"two\n")
    output.close()

    assert output.tail() == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (b"", "it printed nothing"),
        (b"first\nlast\n\n", "last"),
        (b'noise\n{"event": "failed", "message": "no model"}\nmore noise\n', "no model"),
        (b'{"event": "failed", "message"\n', '{"event": "failed", "message"'),
        (b"caf\xc3\n", "caf\ufffd"),
        (b"x" * 1000, "x" * 400),
    ],
)
def test_the_cause_is_what_the_engine_said_last(tail: bytes, words: str) -> None:
    assert last_words(tail) == words


def test_a_disk_that_was_full_for_a_while_makes_no_file_grow_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = EngineOutput(tmp_path / "a.log", file_bytes=100)
    output.write(b"x" * 90)

    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk, structlog.testing.capture_logs() as logs:
        disk.setattr(os, "write", full)
        output.write(b"lost")
        output.write(b"lost")
    for number in range(10):
        output.write(b"line %04d\n" % number)
    output.close()

    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 90 + b"line 0000\n"
    assert (tmp_path / "a.log").stat().st_size == 90
    assert [line["event"] for line in logs] == ["engine.log_failed"]
