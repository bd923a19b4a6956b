"""A disk that is full costs a message, never a traceback nor the way back."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest
from typer.main import get_command

from harness_kit.scripted_cli import TASK, service
from harness_kit.scripted_server import end, started, stream_answer, token
from orch_cli.main import app, main


class FullDisk(io.TextIOWrapper):
    """Stdout that takes `room` writes and then no more, as /dev/full does at once."""

    def __init__(self, room: int) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self.room = room
        self.taken = ""

    def write(self, text: str) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        self.taken += text
        return len(text)


@pytest.mark.parametrize(
    ("room", "place"), [(0, ""), (1, " --from 2"), (2, " --from 3")], ids=["none", "one", "two"]
)
def test_a_full_disk_in_a_stream_is_told_with_the_way_back(
    room: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream_answer(started(), token(0, "a"), token(1, "b"), token(2, "c"), end(3))
    if room == 0:
        place = " --from 1"  # `started` writes nothing
    errors = io.StringIO()
    monkeypatch.setattr("sys.stdout", FullDisk(room))
    monkeypatch.setattr("sys.stderr", errors)
    with service(stream=whole) as server:
        command = ["submit", "x", "--task-id", TASK, "--stream", "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    assert status == 1
    assert "error: stdout cannot be written: No space left on device" in errors.getvalue()
    assert f"Come back: llama-orch stream {TASK}{place}\n" in errors.getvalue()


def test_a_full_disk_after_admission_tells_the_task_also_as_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = io.StringIO()
    monkeypatch.setattr("sys.stdout", FullDisk(0))
    monkeypatch.setattr("sys.stderr", errors)
    with service() as server:
        command = ["submit", "x", "--task-id", TASK, "--json", "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    error = json.loads(errors.getvalue())["error"]
    assert status == 1
    assert f"llama-orch stream {TASK}" in error["hint"]


@pytest.mark.parametrize("arguments", [["--help"], ["config", "schema"], ["profiles"]])
def test_a_full_disk_gives_a_message_and_no_traceback_from_any_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", errors)
        monkeypatch.setattr("sys.argv", ["llama-orch", *arguments])

        with pytest.raises(SystemExit) as caught:
            main()

    assert caught.value.code == 1
    assert "No space left on device\n" in errors.getvalue()
    assert "Traceback" not in errors.getvalue()


def test_a_stderr_that_takes_nothing_does_not_cost_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = FullDisk(9)
    monkeypatch.setattr("sys.stdout", taken)
    monkeypatch.setattr("sys.stderr", FullDisk(0))
    with service() as server:
        command = ["submit", "x", "--task-id", TASK, "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    assert status in {None, 0}
    assert taken.taken == f"{TASK}\n"
