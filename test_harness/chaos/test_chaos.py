"""Chaos: faults in a seeded schedule under open-loop load, and what holds after any of them.

The run has two acts on one stage. In the first the orchestrator is killed again and again, besides
everything that happens to engines; the second is one life of its process, so that its memory,
descriptors and counters can be held against what the clients saw in it. `invariants` judges both.

`make chaos` runs it for LLORCH_CHAOS_MINUTES; the tests run it until each kind of fault has come.
LLORCH_CHAOS_SEED repeats a schedule. Times are printed, and decide nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from chaos import invariants
from chaos.faults import Lane, Survived, engine_faults, gpu_faults, orchestrator_faults, run_lanes
from chaos.history import Footprint, TaskHistory
from chaos.journeys import Client, Journey
from chaos.load import DEADLINE_MS, TENANTS, Journeys, Load, Prompt
from chaos.report import publish, summary
from chaos.stage import (
    EXACT_MODEL,
    GPU_MODEL,
    ZETA_MAX_CONCURRENT,
    Stage,
    stage,
)
from harness_kit.http_probe import task, text_of
from harness_kit.service_process import MODEL, OTHER_TENANT_KEY
from harness_kit.waiting import wait_until

MINUTES = float(os.environ.get("LLORCH_CHAOS_MINUTES") or 0)
SEED = int(os.environ.get("LLORCH_CHAOS_SEED") or 20261123)
EXACT_PROMPTS = 4
WARM_TASKS = 40
# A prompt that needs pages which a full disk has not; one word, so the engine counts one token.
BIG_CHARACTERS = 300_000
REFUSED_S = 60.0

pytestmark = pytest.mark.timeout(600 + 120 * MINUTES)


@dataclass(frozen=True, slots=True)
class Act:
    """One part of the run: what was survived, and what every client saw."""

    survived: list[Survived]
    tasks: list[TaskHistory]


@dataclass(frozen=True, slots=True)
class Run:
    """Both acts; of the second what the idle process held and counted before and after it."""

    stage: Stage
    first: Act
    second: Act
    footprints: tuple[Footprint, Footprint]
    counted: dict[str, float]

    @property
    def tasks(self) -> list[TaskHistory]:
        return self.first.tasks + self.second.tasks

    @property
    def survived(self) -> list[Survived]:
        return self.first.survived + self.second.survived


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, nvml_file: Any) -> Iterator[Run]:
    with stage(tmp_path_factory.mktemp("chaos"), nvml_file) as playing:
        print(f"\nLLORCH_CHAOS_SEED={SEED}, full disk by {playing.disk.kind}")
        prompts = undisturbed(playing)
        first = play(playing, prompts, "first", crashes=True, minutes=MINUTES / 3)
        warm = warmed_up(playing, prompts)
        before, counted = playing.footprint(), playing.counted()
        second = play(playing, prompts, "second", crashes=False, minutes=2 * MINUTES / 3)
        grown = {name: value - counted[name] for name, value in playing.counted().items()}
        after = playing.footprint()
        first.tasks.extend(warm)
        result = Run(playing, first, second, (before, after), grown)
        publish(
            summary(SEED, playing.disk.kind, result.survived, result.tasks, playing.replica_sets())
        )
        yield result


def undisturbed(playing: Stage) -> list[Prompt]:
    """What the real engines say when nothing happens to them."""
    prompts = []
    for number in range(EXACT_PROMPTS):
        fields: dict[str, Any] = {
            "prompt": f"Story number {number}: once upon a time there was",
            "seed": number,
            "max_tokens": 24,
            "sampling": {"temperature": 0.9, "top_p": 0.95, "top_k": 40},
        }
        tenant, key = TENANTS[0]
        journey = Journey(task(EXACT_MODEL, **fields), tenant, key, None)
        history = Client(journey, playing.port).go()
        assert history.outcome == "completed", history
        prompts.append(Prompt(EXACT_MODEL, fields, text_of(history.joined)))
    return prompts


def play(playing: Stage, prompts: list[Prompt], name: str, *, crashes: bool, minutes: float) -> Act:
    """One act: faults in two lanes under load, then quiet."""
    ends_s = time.monotonic() + 60 * minutes
    journeys = Journeys(f"{SEED}/{name}", (MODEL, MODEL, GPU_MODEL), prompts)
    with Load(journeys, playing.port) as load:
        host = orchestrator_faults(
            playing.service, playing.disk, lambda: refuses_for_want_of_room(playing, load)
        )
        engines = [pair for pool in playing.engines.values() for pair in pool]
        broken = engine_faults(engines)
        lanes = [
            Lane("engines", broken, lambda: playing.ready("volume", "exact"), leads=crashes),
        ]
        gpus = gpu_faults(playing.service, "gpu", playing.nvml)
        if crashes:
            # In one lane: launched engines die with the orchestrator, and its counters too.
            host |= {kind: gpus[kind] for kind in ("xid", "ecc")}
            lanes.append(Lane("host", host, lambda: playing.serves() and playing.ready("gpu")))
        else:
            whole = {kind: host[kind] for kind in ("orchestrator stopped", "disk full")}
            memory = {kind: gpus[kind] for kind in ("gpu lost", "vram exhausted")}
            lanes.append(Lane("host", whole, playing.serves))
            lanes.append(Lane("gpus", memory, lambda: playing.ready("gpu")))
        survived = run_lanes(
            lanes, playing.threads, f"{SEED}/{name}", lambda: time.monotonic() >= ends_s
        )
    tasks = load.histories()
    for history in tasks:
        history.outlived_a_crash = crashes
    playing.wait_idle()
    return Act(survived, tasks)


def warmed_up(playing: Stage, prompts: list[Prompt]) -> list[TaskHistory]:
    """Work without faults, so that a new process has everything that it will keep; then quiet."""
    with Load(Journeys(f"{SEED}/warm", (MODEL, GPU_MODEL), prompts), playing.port) as load:
        wait_until(lambda: load.begun >= WARM_TASKS, REFUSED_S, "the process is warm")
    playing.wait_idle()
    return load.histories()


def refuses_for_want_of_room(playing: Stage, load: Load) -> None:
    """Ask for work that needs room until some is refused."""

    def refused() -> bool:
        tenant, key = TENANTS[0]
        document = task(
            MODEL, prompt="x" * BIG_CHARACTERS, max_tokens=4, ctx=8192, deadline_ms=DEADLINE_MS
        )
        history = load.send(Journey(document, tenant, key, None))
        wait_until(lambda: bool(history.answers), REFUSED_S, "an answer on a full disk")
        return history.answers[0].status == 500

    wait_until(refused, REFUSED_S, "new work is refused on a full disk")


@pytest.mark.parametrize("invariant", invariants.OF_A_TASK, ids=lambda f: f.__name__)
@pytest.mark.req("ORCH-3051", "ORCH-3201", "ORCH-3203", "ORCH-3024", "ORCH-3026", "ORCH-2006")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
def test_for_every_task_holds(
    run: Run, invariant: Callable[[TaskHistory], invariants.Violations]
) -> None:
    violations = [said for history in run.tasks for said in invariant(history)]

    assert violations == []


@pytest.mark.req("ORCH-3051", "ORCH-3038", "ORCH-3039", "ORCH-3053")
def test_every_kind_of_fault_was_survived_under_load_of_every_kind(run: Run) -> None:
    kinds = {fault.kind for fault in run.survived}
    behaviours = {
        "resumed or cancelled": any(history.at_cancel for history in run.tasks),
        "read again": any(history.again for history in run.tasks),
        "posted again": any(len(history.answers) > 1 for history in run.tasks),
        "failed over": run.stage.service.metric("failovers_total", outcome="resumed") > 0,
    }
    mismatches = run.stage.service.metric("failovers_total", outcome="mismatch")

    assert kinds == {
        *engine_faults([]),
        *orchestrator_faults(run.stage.service, run.stage.disk, lambda: None),
        *gpu_faults(run.stage.service, "gpu", run.stage.nvml),
    }
    assert [name for name, seen in behaviours.items() if not seen] == []
    assert {history.outcome for history in run.tasks} >= {"completed", "canceled", "refused"}
    assert mismatches == 0


@pytest.mark.req("ORCH-3051", "ORCH-3017")
def test_no_slot_place_or_reader_is_held_when_all_is_over(run: Run) -> None:
    held = list(invariants.nothing_is_held(run.stage.service.metric, run.stage.replica_sets()))

    assert held == []


@pytest.mark.req("ORCH-3051", "ORCH-3077")
def test_the_tenants_quota_is_whole_again(run: Run) -> None:
    service = run.stage.service
    documents = [
        task(MODEL, max_tokens=4000, ctx=8192, deadline_ms=DEADLINE_MS)
        for _ in range(ZETA_MAX_CONCURRENT + 1)
    ]
    with service.probe(OTHER_TENANT_KEY) as probe:
        statuses = [probe.post("/v1/tasks", document).status for document in documents]
        service.wait_metric("tasks_running", ZETA_MAX_CONCURRENT, pool_id="volume")
        waiting = service.metric("queue_depth", pool_id="volume")
        cancelled = [probe.post(f"/v1/tasks/{d['task_id']}/cancel").status for d in documents]
    service.wait_metric("tasks_running", 0)

    assert statuses == [202] * len(documents)
    assert waiting == 1
    assert cancelled == [204] * len(documents)


@pytest.mark.req("ORCH-3028", partial="one run of counters that clients can hold against theirs")
def test_the_counters_say_what_the_clients_saw(run: Run) -> None:
    disagreements = list(invariants.counters_agree(run.counted, run.second.tasks))

    assert disagreements == []


@pytest.mark.req("ORCH-3051")
def test_memory_and_descriptors_of_one_life_are_flat(run: Run) -> None:
    assert list(invariants.footprint_is_flat(*run.footprints)) == []
