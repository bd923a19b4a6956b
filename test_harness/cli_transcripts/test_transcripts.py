"""What `llama-orch` shows on a terminal, in a pipe and as JSON: its results, errors and hints.

The commands are typed once, in one order, against a running service, since what one shows depends
on what was done before; each test then looks at what one of them showed. `--snapshot-update`
writes the snapshots anew; read the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import yaml
from syrupy.assertion import SnapshotAssertion

from cli_transcripts.command_line import CommandLine
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import task
from harness_kit.service_process import (
    ALL_KEY,
    METRICS_KEY,
    ServiceProcess,
    external_pool,
)

TASK = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
SESSION = "0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10"
FULL = "file:/models/full.gguf"
SUBMIT = ("submit", "Once upon a time", "--max-tokens", "4", "--seed", "42")
ASKED = ("--engine", "llamacpp", "--ctx", "64", "--model")
ON_TERMINAL, IN_COLOUR, IN_PIPE, AS_JSON = "terminal", "colour", "pipe", "json"
EVERYWHERE = (ON_TERMINAL, IN_PIPE, AS_JSON)
SCRIPTED = (IN_PIPE, AS_JSON)

# The words of a command, and the ways in which it is looked at.
Look = tuple[tuple[str, ...], tuple[str, ...]]

# What is typed to the service while nothing has run yet.
LOOKS: dict[str, Look] = {
    "pools": (("pools",), (IN_COLOUR, *EVERYWHERE)),
    "replica sets": (("replicasets",), SCRIPTED),
    "capabilities": (("capabilities",), (ON_TERMINAL, AS_JSON)),
    "a cordon": (("cordon", "p0"), (AS_JSON,)),
    "a resume": (("resume", "p0"), (IN_PIPE,)),
    "an unchanged configuration": (("config", "reload", "--dry-run"), (IN_PIPE,)),
}
# Then a task is submitted, read, explained and proved; its session ends.
TASKS: dict[str, Look] = {
    "a task": ((*SUBMIT, "--task-id", TASK, "--session", SESSION), SCRIPTED),
    "a stream": (("stream", TASK), EVERYWHERE),
    "a stream from a place": (("stream", TASK, "--from", "3"), (AS_JSON,)),
    "a task and its stream": ((*SUBMIT, "--stream"), (ON_TERMINAL,)),
    "an explanation": (("explain", TASK), (IN_PIPE,)),
    "a proof": (("determinism", "verify", TASK), (IN_PIPE,)),
    "a session": (("session", "show", SESSION), (IN_PIPE,)),
    "a cancel": (("cancel", TASK), (AS_JSON,)),
    "a forgotten session": (("session", "forget", SESSION), (IN_PIPE,)),
}
REFUSED: dict[str, Look] = {
    "an unknown task": (("explain", UNKNOWN), (IN_COLOUR, *SCRIPTED)),
    "a full queue": ((*SUBMIT, *ASKED, FULL), SCRIPTED),
    "a model of nobody": ((*SUBMIT, *ASKED, "file:/none"), (IN_PIPE,)),
    "a reload of foreign engines": (("reload", "p0", "--model", "file:/other"), (IN_PIPE,)),
    "nothing to revert": (("config", "revert"), (IN_PIPE,)),
}
# What fails, or succeeds, without the service.
ALONE: dict[str, Look] = {
    "a bad configuration key": (
        ("config", "validate", "bad.yaml", "--no-env"),
        (ON_TERMINAL, AS_JSON),
    ),
    "a good configuration": (("config", "validate", "good.yaml", "--no-env"), (IN_PIPE,)),
    "a service with a bad configuration": (("serve", "--config", "bad.yaml"), (IN_PIPE,)),
    "a configuration that is not there": (("serve", "--config", "none.yaml"), (IN_PIPE,)),
    "a task id that is none": (("stream", "nope"), (IN_PIPE,)),
    "an unknown command": (("sbumit",), (IN_PIPE,)),
    "an unreachable service": (("pools", "--url", "http://127.0.0.1:1"), SCRIPTED),
    "an empty store": (("models", "list", "--store", "models"), (IN_PIPE,)),
    "a bundle that is not there": (("proof", "verify", "none"), (IN_PIPE,)),
}
WITH_KEYS = {"no key": "", "a key of nobody": "of-nobody", "a key of another role": METRICS_KEY}
NAMES = (*LOOKS, *TASKS, *REFUSED, *ALONE, *WITH_KEYS)

Said = dict[str, str]


def typed(shell: CommandLine, words: tuple[str, ...], ways: tuple[str, ...]) -> str:
    """One command, looked at in each of the ways."""
    shows = {
        ON_TERMINAL: lambda: shell.on_terminal(*words),
        IN_COLOUR: lambda: shell.in_colour(*words),
        IN_PIPE: lambda: shell.in_pipe(*words),
        AS_JSON: lambda: shell.in_pipe(*words, "--json"),
    }
    return "\n".join(shows[way]() for way in ways)


def typed_all(shell: CommandLine, looks: dict[str, Look]) -> Said:
    """One command after the other."""
    return {name: typed(shell, *look) for name, look in looks.items()}


@contextmanager
def full_queue(service: ServiceProcess, engine: GatedEngine) -> Iterator[None]:
    """One task runs and one waits: there is no place for another."""
    engine.hold()
    with service.probe() as probe:
        for _ in range(2):
            assert probe.post("/v1/tasks", task(FULL)).status == 202
    try:
        yield
    finally:
        engine.allow()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What each command showed, by name."""
    home = tmp_path_factory.mktemp("home")
    with (
        ThreadPoolExecutor(1) as aside,
        GatedEngine(slots=2) as engine,
        GatedEngine(slots=1) as busy,
        ServiceProcess(
            tmp_path_factory.mktemp("service"),
            external_pool(engine.url),
            external_pool(busy.url, pool_id="full", model=FULL, queue={"capacity": 1}),
        ) as service,
    ):
        service.wait_metric("replica_ready", 2)
        good = yaml.safe_dump(service.config)
        (home / "good.yaml").write_text(good, encoding="utf-8")
        (home / "bad.yaml").write_text(good.replace("quant:", "qaunt:", 1), encoding="utf-8")
        without_service = aside.submit(typed_all, CommandLine(home), ALONE)
        url = {"LLAMA_ORCH_URL": f"http://127.0.0.1:{service.port}"}
        shell = CommandLine(home, url | {"LLAMA_ORCH_API_KEY": ALL_KEY})
        shown = typed_all(shell, LOOKS | TASKS)
        with full_queue(service, busy):
            shown |= typed_all(shell, REFUSED)
        for name, key in WITH_KEYS.items():
            stranger = CommandLine(home, url | ({"LLAMA_ORCH_API_KEY": key} if key else {}))
            shown[name] = typed(stranger, ("pools",), (IN_PIPE,))
    return shown | without_service.result()


@pytest.mark.timeout(300)  # the first one types all commands; each is a process of its own
@pytest.mark.req("OC-CLI-8001", "OC-CLI-8002")
@pytest.mark.parametrize("name", NAMES)
def test_what_a_command_shows(name: str, said: Said, snapshot: SnapshotAssertion) -> None:
    assert said[name] == snapshot


@pytest.mark.timeout(300)
def test_a_pipe_carries_no_escape_sequence_and_json_is_one_object_a_line(said: Said) -> None:
    for name, text in said.items():
        piped = [part for part in text.split("$ llama-orch ") if " | cat\n" in part]

        assert "␛" not in "".join(piped), name
        for part in (part for part in piped if "--json | cat" in part):
            lines = part.splitlines()[1:-1]
            assert all(not line or line.startswith(("{", "[", "-- stderr")) for line in lines), name
