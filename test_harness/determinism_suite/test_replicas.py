"""Two real replicas of each engine, each with the settings of a single request, decode the corpus.

Two services with different hash seeds share the two engines. In the first round each drives one
replica over all 64 seeds, at the same time; then they swap, for as many seeds as
LLORCH_DETERMINISM_SEEDS says, so that for those every service has been on every replica. Which
replica decodes is decided by a cordon, not by time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from determinism_suite.corpus import load_corpus
from determinism_suite.decoded_streams import DecodedStream, HashSeededService
from determinism_suite.token_diff import Verdict, compare_all, first_divergence, verdict_of
from harness_kit.engine_targets import TARGETS, EngineTarget, Replicas
from harness_kit.report_files import report_file
from harness_kit.service_process import ServiceProcess, external_pool

HASH_SEEDS = ("0", "4242")
FIRST_TOKENS = 32
# Of the 64, those decoded in the second round, and those of the best-effort report.
SWAPPED = int(os.environ.get("LLORCH_DETERMINISM_SEEDS", "8"))
BEST_EFFORT_SEEDS, BEST_EFFORT_SLOTS = 8, 4
POOL_CTX = 1024

REAL = [target for target in TARGETS.values() if target.replicas is not None]
CORPUS = load_corpus(os.environ)

# Thousands of tokens on the cores that are there: the whole square takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True, slots=True)
class ReplicaPair:
    """Two engines and the two services before them; `settings` read those of each engine."""

    target: EngineTarget
    replicas: Replicas
    settings: list[Callable[[], Mapping[str, Any]]]
    services: tuple[HashSeededService, HashSeededService]


@dataclass(frozen=True, slots=True)
class Rounds:
    """`first[i]` is of service i on replica i; `swapped[i]` of service i on the other replica."""

    first: list[list[DecodedStream]]
    swapped: list[list[DecodedStream]]


def service_under(hash_seed: str, directory: Path, pool: dict[str, Any]) -> ServiceProcess:
    """A service whose process has that PYTHONHASHSEED; started by `with`."""
    service = ServiceProcess(directory, pool)
    service.environment["PYTHONHASHSEED"] = hash_seed
    return service


@pytest.fixture(scope="module", params=REAL, ids=lambda target: target.engine)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReplicaPair]:
    target: EngineTarget = request.param
    assert target.replicas is not None
    with ExitStack() as stack:
        started = [stack.enter_context(target.replicas.start(1)) for _ in range(2)]
        urls = [url for url, _ in started]
        pool = external_pool(*urls, engine=target.engine, model=target.replicas.model, ctx=POOL_CTX)
        services = [
            HashSeededService(
                stack.enter_context(
                    service_under(seed, tmp_path_factory.mktemp(f"hash-{seed}"), pool)
                ),
                seed,
            )
            for seed in HASH_SEEDS
        ]
        for one in services:
            one.service.wait_metric("replica_ready", 2)
        settings = [shown for _, shown in started]
        yield ReplicaPair(target, target.replicas, settings, (services[0], services[1]))


@pytest.fixture(scope="module")
def rounds(pair: ReplicaPair) -> Rounds:
    def decode(turn: int, count: int) -> list[list[DecodedStream]]:
        def drive(number: int) -> list[DecodedStream]:
            service = pair.services[number]
            service.only(f"r{(number + turn) % 2}", ("r0", "r1"))
            return service.decode(pair.replicas.model, pair.target.engine, CORPUS[:count])

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(drive, (0, 1)))

    return Rounds(decode(0, len(CORPUS)), decode(1, SWAPPED))


def where(streams: list[DecodedStream]) -> set[tuple[str, str]]:
    """Replica and hash seed of everything in `streams`."""
    return {(stream.replica_id, stream.hash_seed) for stream in streams}


@pytest.mark.req("OC-TEST-7002", partial="the other three engines")
@pytest.mark.req("ORCH-3050", partial="the other three engines")
def test_each_replica_shows_the_settings_of_a_single_request(
    pair: ReplicaPair, rounds: Rounds
) -> None:
    decoded = len(rounds.first[0])

    shown = [settings() for settings in pair.settings]

    assert shown == [pair.replicas.single_request] * 2
    assert decoded > len({entry.prompt for entry in CORPUS}), "no prompt came twice"


def test_every_engine_that_can_be_configured_is_here_with_replicas() -> None:
    adapters = {point.name for point in entry_points(group="llama_orch.engine_adapters")}

    # The mock is no engine of a configuration.
    assert {target.engine for target in REAL} == adapters - {"mock"}


@pytest.mark.req("OC-TEST-7001", "OC-TEST-7003", "ORCH-3045")
@pytest.mark.req("ORCH-3050", partial="the other three engines")
def test_64_seeds_give_the_same_bytes_on_two_replicas(pair: ReplicaPair, rounds: Rounds) -> None:
    pairs = list(zip(*rounds.first, strict=True))

    found = compare_all(pair.target.engine, pairs, os.environ)

    first = pairs[0][0]
    report_file(f"determinism/{pair.target.engine}.json").write_text(
        json.dumps(
            {
                "engine_version": first.engine_version,
                "model_digest": first.model_digest,
                "settings": dict(pair.settings[0]()),
                "hash_seeds": list(HASH_SEEDS),
                "seeds": len(pairs),
                "tokens_compared": sum(len(one.tokens) for one, _ in pairs),
                "seeds_on_every_replica_under_every_hash_seed": len(rounds.swapped[0]),
            }
            | {verdict.value: count for verdict, count in found.counts.items()},
            indent=2,
        )
        + "\n"
    )
    assert found.failures == ()
    assert found.counts[Verdict.EQUAL] == 64
    assert [where(streams) for streams in rounds.first] == [
        {("r0", HASH_SEEDS[0])},
        {("r1", HASH_SEEDS[1])},
    ]
    # A stream that the model ends early is compared whole; most of them must be longer.
    assert sum(len(one.tokens) >= FIRST_TOKENS for one, _ in pairs) >= 56


@pytest.mark.req("ORCH-3045")
def test_other_seeds_give_other_streams(rounds: Rounds) -> None:
    streams = {(one.entry.prompt, one.tokens) for one in rounds.first[0]}

    # Otherwise equal bytes would say nothing of the seed.
    assert len(streams) >= 60


@pytest.mark.req("OC-TEST-7001", "ORCH-3045")
def test_the_transcript_does_not_depend_on_replica_or_hash_seed(
    pair: ReplicaPair, rounds: Rounds
) -> None:
    quarters = [*(streams[:SWAPPED] for streams in rounds.first), *rounds.swapped]
    environments = [
        Path(f"/proc/{one.service.pid}/environ").read_bytes().split(b"\0") for one in pair.services
    ]

    transcripts = {b"\n".join(b"".join(one.events) for one in streams) for streams in quarters}

    assert len(transcripts) == 1
    assert set().union(*map(where, quarters)) == {
        (replica, seed) for replica in ("r0", "r1") for seed in HASH_SEEDS
    }
    for seed, environment in zip(HASH_SEEDS, environments, strict=True):
        assert f"PYTHONHASHSEED={seed}".encode() in environment


@pytest.mark.req("ORCH-3045", partial="strict tasks")
def test_best_effort_under_load_is_measured_and_not_judged(
    pair: ReplicaPair, rounds: Rounds, tmp_path: Path
) -> None:
    model, engine = pair.replicas.model, pair.target.engine
    first_turns = rounds.first[0][:BEST_EFFORT_SEEDS]
    # The second turn of a conversation: its prefix is in a slot, decoded and not read there.
    second_turns = [
        replace(one.entry, prompt=one.entry.prompt + "".join(one.tokens)) for one in first_turns
    ]
    with pair.replicas.start(BEST_EFFORT_SLOTS) as (url, settings):
        pool = external_pool(url, engine=engine, model=model, ctx=POOL_CTX)
        with service_under(HASH_SEEDS[0], tmp_path, pool) as service:
            loaded = HashSeededService(service, HASH_SEEDS[0])
            entries = [one.entry for one in first_turns]

            cold = loaded.decode(model, engine, entries, determinism="best_effort")
            warm = loaded.decode(model, engine, second_turns, determinism="best_effort")
            shown = settings()
            strict = loaded.decode(model, engine, second_turns)

    report = {
        "engine": engine,
        "slots": shown["total_slots"],
        "prompt_tokens_cached": shown["prompt_tokens_cached"],
        "first_turns": _divergences(first_turns, cold),
        "second_turns": _divergences(strict, warm),
    }
    report_file("determinism/best_effort.json").write_text(json.dumps(report, indent=2) + "\n")
    assert report["slots"] == BEST_EFFORT_SLOTS
    assert [len(streams) for streams in (cold, warm, strict)] == [BEST_EFFORT_SEEDS] * 3
    # Nothing is recorded of such a task, so nothing can be taken for a promise.
    assert {verdict_of(*both) for both in zip(strict, warm, strict=True)} == {
        Verdict.NOT_COMPARABLE
    }


def _divergences(
    expected: list[DecodedStream], streams: list[DecodedStream]
) -> dict[str, int | list[int]]:
    """How many streams there were, and the first token of each that differs."""
    places = [
        first_divergence(one, other)
        for one, other in zip(expected, streams, strict=True)
        if one.events != other.events
    ]
    return {"streams": len(streams), "diverged": len(places), "first_divergent_tokens": places}
