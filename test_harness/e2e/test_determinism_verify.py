"""`llama-orch determinism verify` against the real service: proved, diverged, not comparable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine, words_by_seed
from harness_kit.http_probe import HttpProbe, task
from harness_kit.service_process import (
    DATA_KEY,
    MODEL,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
    launched_pool,
)

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}


def finished(probe: HttpProbe, document: dict[str, Any]) -> str:
    """Submit a task and read it to its end; returns its id."""
    answer = probe.post("/v1/tasks", document)
    assert answer.status == 202, answer
    assert probe.stream(document["task_id"]).rest()[-1].name == "end"
    task_id: str = document["task_id"]
    return task_id


def verify(service: ServiceProcess, task_id: str) -> tuple[int, dict[str, Any]]:
    """The command's exit status and what it printed as JSON."""
    result = subprocess.run(
        [sys.executable, "-m", "orch_cli.main", "determinism", "verify", task_id, "--json"],
        env=os.environ
        | {
            "LLAMA_ORCH_URL": f"http://127.0.0.1:{service.port}",
            "LLAMA_ORCH_API_KEY": DATA_KEY,
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    document: dict[str, Any] = json.loads(result.stdout or result.stderr)
    return result.returncode, document


@pytest.mark.req("ORCH-3206")
def test_a_sampled_stream_of_a_real_model_is_proved_also_after_a_crash(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, launched_pool(1)) as service:
        with service.probe() as probe:
            document = task("builtin:smollm2", max_tokens=24, sampling=SAMPLED)
            task_id = finished(probe, document)
        before = verify(service, task_id)
        service.kill()
        service.restart()

        after = verify(service, task_id)

    assert (before[0], before[1]["verdict"]) == (0, "proved"), before
    assert (after[0], after[1]["verdict"]) == (0, "proved"), after


@pytest.mark.req("ORCH-3206", "ORCH-3045")
def test_an_engine_that_decodes_other_bytes_the_second_time_is_found_out(tmp_path: Path) -> None:
    lies = False

    def script(prompt: str, seed: int, count: int) -> list[str]:
        words = words_by_seed(prompt, seed, count)
        return [*words[:5], " lie", *words[6:]] if lies else words

    with (
        GatedEngine(slots=1, script=script) as engine,
        ServiceProcess(tmp_path, external_pool(engine.url)) as service,
        service.probe() as probe,
    ):
        task_id = finished(probe, task(MODEL, max_tokens=12))
        lies = True

        status, said = verify(service, task_id)

    assert (status, said["verdict"], said["differs_at"]) == (1, "diverged", 5)
    assert said["got"].startswith(" lie")


@pytest.mark.req("ORCH-3206")
def test_only_a_whole_strict_completion_of_ones_own_has_a_record(tmp_path: Path) -> None:
    with (
        GatedEngine(slots=1) as engine,
        ServiceProcess(tmp_path, external_pool(engine.url)) as service,
        service.probe() as probe,
        service.probe(OTHER_TENANT_KEY) as stranger,
    ):
        strict = finished(probe, task(MODEL))
        loose = finished(probe, task(MODEL, determinism="best_effort"))
        engine.hold()
        running = task(MODEL)
        probe.post("/v1/tasks", running)
        engine.wait_busy(1)

        answers = {
            name: client.get(f"/v1/tasks/{task_id}/determinism").status
            for name, client, task_id in (
                ("strict", probe, strict),
                ("best_effort", probe, loose),
                ("running", probe, running["task_id"]),
                ("somebody else's", stranger, strict),
                ("unknown", probe, "00000000-0000-4000-8000-000000000000"),
            )
        }
        engine.allow()

    assert answers == {
        "strict": 200,
        "best_effort": 409,
        "running": 409,
        "somebody else's": 404,
        "unknown": 404,
    }


@pytest.mark.req("ORCH-3206")
def test_a_conversation_is_proved_by_the_prompt_that_its_template_made(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, launched_pool(1)) as service, service.probe() as probe:
        messages = [{"role": "user", "content": "Name a colour."}]
        task_id = finished(
            probe, task("builtin:smollm2", prompt=None, messages=messages, max_tokens=8)
        )

        report = probe.get(f"/v1/tasks/{task_id}/determinism").json()
        status, said = verify(service, task_id)

    assert "Name a colour." in report["request"]["prompt"]
    assert "messages" not in report["request"]
    assert (status, said["verdict"]) == (0, "proved"), said
