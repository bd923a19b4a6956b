"""`bdd-runner` as a pipeline runs it: against a service that keeps its promises, and others.

The scenarios are the project's own. What is tested is that they pass where they should, fail where
they must, and that nothing which was not played counts as passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bdd.selection import FEATURES
from bdd_runner.main import app
from harness_kit.engine_process import free_port
from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import FakeScript
from harness_kit.report_files import report_file
from harness_kit.scripted_server import (
    Answer,
    ScriptedServer,
    end,
    json_answer,
    started,
    token,
)
from harness_kit.service_process import ALL_KEY, ServiceProcess, external_pool

KEY = {"ORCH_KEY": ALL_KEY}
CAPABILITIES = json_answer(
    200,
    {
        "api_version": "1.0.0",
        "engines": [{"engine": "llamacpp", "ctx_max": 1, "model_refs": ["m"]}],
    },
)
ADMITTED = json_answer(
    202,
    {"task_id": "", "queue_position": 0, "predicted_start_ms": 5, "backoff_ms": 0},
    X_Queue_Position="0",
    X_Queue_ETA_Ms="5",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Its engine takes long enough over 800 tokens to be told to stop."""
    with FakeEngine(FakeScript(token_interval_s=0.005)) as engine:
        pool = external_pool(engine.url, ctx=1024)
        with ServiceProcess(tmp_path_factory.mktemp("runner"), pool) as running:
            yield running


def url_of(service: ServiceProcess) -> str:
    return f"http://127.0.0.1:{service.port}"


def run(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bdd_runner", "--url", url, "--api-key-env", "ORCH_KEY"]
    return subprocess.run(
        [*command, *options],
        env=os.environ | KEY,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def chunked(*events: bytes) -> Answer:
    """A stream as the service frames it, complete."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
    return lambda _request: [head, *body, b"0\r\n\r\n"]


def in_files() -> tuple[int, int]:
    """Scenarios that any service can be asked to play, and those that need their own."""
    anybody, owner = 0, 0
    for file in FEATURES.rglob("*.feature"):
        text = file.read_text("utf-8")
        count = text.count("\n  Scenario:")
        if text.startswith("@own-service\n"):
            owner += count
        else:
            anybody += count
    return anybody, owner


def test_a_service_that_keeps_its_promises_passes_and_what_was_not_played_is_counted(
    service: ServiceProcess,
) -> None:
    anybody, owner = in_files()

    ended = run(url_of(service), "--json")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    report_file("bdd/live_service.json").write_text(ended.stdout, encoding="utf-8")
    report = json.loads(ended.stdout)
    assert report["counts"] == {"passed": anybody, "failed": 0, "needs_own_service": owner}
    assert anybody >= 20
    outcomes = {(each["feature"], each["outcome"]) for each in report["scenarios"]}
    assert ("sse/reading.feature", "passed") in outcomes
    assert ("lifecycle/crash.feature", "needs its own service") in outcomes
    assert ALL_KEY not in ended.stdout + ended.stderr


def test_tags_and_a_path_select_and_the_report_for_people_names_what_passed(
    service: ServiceProcess,
) -> None:
    ended = run(url_of(service), "--features", "data_plane", "--tags", "@ORCH-3024")

    *_, feature, scenario, counts = ended.stdout.splitlines()
    assert ended.returncode == 0
    assert feature == "data_plane/first_day.feature"
    assert scenario.startswith("  passed  An answer that was lost on the way costs nothing")
    assert counts == "1 passed, 0 failed, 0 need their own service"


def test_a_service_that_repeats_a_token_fails_at_the_step_that_saw_it() -> None:
    repeated = chunked(started(), token(0, "Rome"), token(0, "Rome"), end(2))
    with ScriptedServer(CAPABILITIES, ADMITTED, ADMITTED, repeated) as wrong:
        ended = run(wrong.url, "--tags", "ORCH-3024", "--features", "data_plane", "--json")

    assert ended.returncode == 1, ended.stdout + ended.stderr
    (played,) = json.loads(ended.stdout)["scenarios"]
    assert played["outcome"] == "failed"
    assert played["step"] == 'And "The capital of Italy is" ends well'
    assert "('token', 2, 0), ('token', 2, 0)" in played["error"]


STRANGE = """
Feature: Steps that do not belong here

  Scenario: A step that nobody has defined
    Given a service whose model is called "assistant"
    Then the moon is full

  Scenario: A step that only an owner can take
    Given pool "mine" with 1 engine of 1 slot
    When acme submits to "mine"
      | task |
      | mine |

  @own-service
  Scenario: One that says so
    When the service is killed and started again
"""


def test_an_undefined_step_fails_and_so_does_one_that_needs_an_untagged_owner(
    tmp_path: Path,
) -> None:
    feature = tmp_path / "strange.feature"
    feature.write_text(STRANGE, encoding="utf-8")
    with ScriptedServer(routes={("GET", "/v1/capabilities"): CAPABILITIES}) as server:
        ended = run(server.url, "--features", str(feature), "--json")

    assert ended.returncode == 1, ended.stdout + ended.stderr
    shown: dict[str, Any] = {
        each["scenario"]: each for each in json.loads(ended.stdout)["scenarios"]
    }
    undefined = shown["A step that nobody has defined"]
    owned = shown["A step that only an owner can take"]
    assert (undefined["outcome"], undefined["step"]) == ("failed", "Then the moon is full")
    assert "Step definition is not found" in undefined["error"]
    assert owned["outcome"] == "failed"
    assert "NeedsOwnService: pool mine is a configuration of its own" in owned["error"]
    assert shown["One that says so"]["outcome"] == "needs its own service"


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("ORCH-3203", "scenarios need their own service; `make bdd` plays them"),
        ("ORCH-0000", "no scenario carries ORCH-0000"),
    ],
)
def test_where_nothing_is_left_to_play_nothing_has_passed(
    service: ServiceProcess, tag: str, said: str
) -> None:
    ended = run(url_of(service), "--tags", tag)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr


class TestWhatCannotBeUsed:
    """Found out before anything is played, and said with what to do about it."""

    def said(self, url: str, *options: str, key: str | None = ALL_KEY) -> str:
        arguments = ["--url", url, "--api-key-env", "ORCH_KEY", *options]
        ended = CliRunner().invoke(app, arguments, env={"ORCH_KEY": key})
        assert (ended.exit_code, ended.stdout) == (2, ""), ended.output
        assert str(key) not in ended.stderr
        return ended.stderr

    def test_nobody_answers(self) -> None:
        port = free_port()

        said = self.said(f"http://127.0.0.1:{port}")

        assert f"nobody answers at http://127.0.0.1:{port}: Connection refused" in said
        assert "is the service running there?" in said

    @pytest.mark.parametrize(
        "url", ["https://127.0.0.1:1", "127.0.0.1:8080", "http://h:x", "http:"]
    )
    def test_no_address(self, url: str) -> None:
        said = self.said(url)

        assert f"bdd-runner: {url}: " in said

    def test_no_key(self, service: ServiceProcess) -> None:
        said = self.said(url_of(service), key=None)

        assert "the service wants a key: --api-key-env names the variable" in said
        assert "(ORCH_KEY is not set)" in said

    def test_a_wrong_key(self, service: ServiceProcess) -> None:
        said = self.said(url_of(service), key="of-somebody-else")

        assert "does not take this key: is it the right one" in said

    def test_a_model_that_is_not_served(self, service: ServiceProcess) -> None:
        said = self.said(url_of(service), "--model", "builtin:other")

        assert "does not serve builtin:other; it serves llamacpp file:/models/fake.gguf" in said

    @pytest.mark.unvalidated_responses("the server is none of ours")
    def test_somebody_else_s_server(self) -> None:
        with ScriptedServer(json_answer(200, ["a list"])) as other:
            said = self.said(other.url)

        assert "gives 200, and not what a llama-orch service says" in said

    def test_features_that_do_not_exist(self, service: ServiceProcess) -> None:
        said = self.said(url_of(service), "--features", "no/such/folder")

        assert "there is no feature in 'no/such/folder'" in said
