"""The gate against a real model, and against everything that it must refuse.

The cheat is a scripted engine that reads the prompt and writes a perfect poem; each test lets it
off for all but one of the rules (`worker` names what it claims to be), so that this one refuses it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from e2e_haiku.gate import SOURCES, Gate, Refused, Rule, real_worker, source_files
from e2e_haiku.poem import Assignment
from e2e_haiku.rate import target_of
from harness_kit.gated_engine import GatedEngine
from harness_kit.service_process import ServiceProcess, external_pool, launched_pool
from pool_managerd.model_files import SMOLLM2, find_model

REQUIRED = {"REQUIRE_REAL_LLAMA": "1"}
NOON = datetime(2026, 3, 1, 12, 41, 58, tzinfo=UTC)
CLAIMED = ("llama.cpp gated-1", "unknown")


def cheated_poem(prompt: str, _seed: int, _count: int) -> list[str]:
    """The poem that a program writes which reads what it is asked for."""
    minute = re.findall(r'phrase: "minute ([^"]+)"', prompt)[-1]
    nonce = re.findall(r'verbatim: "([^"]+)"', prompt)[-1]
    return [minute, "\n", "no moon", "\n", nonce]


@dataclass
class Cheat:
    """The scripted engine and the gate before its service."""

    engine: GatedEngine
    gate: Gate

    def refusal(self, **changes: object) -> Rule:
        """The rule that refuses it; `changes` are fields of the gate."""
        with pytest.raises(Refused) as refused:
            replace(self.gate, **changes).run()  # type: ignore[arg-type] # fields by name
        return refused.value.rule


@pytest.fixture(scope="module")
def cheating_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[GatedEngine, ServiceProcess]]:
    with GatedEngine(slots=1) as engine:
        pool = external_pool(engine.url, model=SMOLLM2)
        with ServiceProcess(tmp_path_factory.mktemp("cheat"), pool) as service:
            yield engine, service


@pytest.fixture
def cheat(cheating_service: tuple[GatedEngine, ServiceProcess], tmp_path: Path) -> Cheat:
    """A perfect one: accepted when it may be what it says it is."""
    engine, service = cheating_service
    engine.script = cheated_poem
    gate = Gate(
        target_of(service),
        REQUIRED,
        now=lambda: NOON,
        draw=random.Random(7),
        sources=tmp_path,
        worker=CLAIMED,
    )
    return Cheat(engine, gate)


@pytest.mark.req("OC-E2E-9001", "OC-E2E-9002")
def test_a_real_model_writes_the_poem_of_this_minute(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path, launched_pool(1)) as service:
        accepted = Gate(target_of(service), REQUIRED).run()

        (pid,) = service.engine_pids().values()
        mapped = Path(f"/proc/{pid}/maps").read_text()

    assert (accepted.engine_version, accepted.model_digest) == real_worker()
    assert accepted.elapsed_s < 30
    # Who wrote it had the engine's library and the model's file in its memory.
    assert "xllamacpp" in mapped
    assert str(find_model(SMOLLM2).path) in mapped


@pytest.mark.req("OC-E2E-9003")
def test_without_the_environment_s_word_nothing_is_asked(cheat: Cheat) -> None:
    asked = len(cheat.engine.decodes)

    rules = [cheat.refusal(environment=said) for said in ({}, {"REQUIRE_REAL_LLAMA": "0"})]

    assert rules == [Rule.NOT_REQUIRED] * 2
    assert len(cheat.engine.decodes) == asked


@pytest.mark.req("OC-E2E-9003")
def test_a_mock_engine_is_refused_however_good_its_poem(cheat: Cheat) -> None:
    harmless = cheat.gate.run()

    rule = cheat.refusal(worker=real_worker())

    assert harmless.text.splitlines()[0] == "forty-one"
    assert rule is Rule.NOT_THE_REAL_WORKER


@pytest.mark.req("OC-E2E-9003")
@pytest.mark.parametrize("claimed", [(real_worker()[0], "unknown"), ("x", real_worker()[1])])
def test_version_and_digest_must_both_be_the_real_ones(
    cheat: Cheat, claimed: tuple[str, str]
) -> None:
    assert cheat.refusal(worker=claimed) is Rule.NOT_THE_REAL_WORKER


@pytest.mark.req("OC-E2E-9003")
@pytest.mark.parametrize("path", ["/nowhere", "/livez"])
def test_a_missing_metrics_page_is_refused(cheat: Cheat, path: str) -> None:
    target = replace(cheat.gate.target, metrics_url=cheat.gate.target.url + path)

    assert cheat.refusal(target=target) is Rule.NO_METRICS


@pytest.mark.req("OC-E2E-9003")
def test_metrics_that_cannot_be_read_are_missing(cheat: Cheat) -> None:
    target = replace(cheat.gate.target, metrics_key="not-a-key")

    assert cheat.refusal(target=target) is Rule.NO_METRICS


@pytest.mark.req("OC-E2E-9002")
def test_tokens_that_no_metric_counts_are_refused(cheat: Cheat, tmp_path: Path) -> None:
    with ServiceProcess(tmp_path / "idle", external_pool(f"{cheat.engine.url}")) as idle:
        target = replace(cheat.gate.target, metrics_url=target_of(idle).metrics_url)

        rule = cheat.refusal(target=target, sources=tmp_path / "none")

    assert rule is Rule.NO_TOKENS_COUNTED


@pytest.mark.req("OC-E2E-9003")
def test_a_hard_coded_poem_is_refused_also_when_its_minute_is_right(cheat: Cheat) -> None:
    yesterday = cheat.gate.run().text

    cheat.engine.script = lambda prompt, seed, count: [yesterday]

    assert yesterday.startswith("forty-one\n")
    assert cheat.refusal() is Rule.NOT_THE_POEM


@pytest.mark.req("OC-E2E-9003")
def test_a_source_line_with_both_strings_is_refused(cheat: Cheat, tmp_path: Path) -> None:
    drawn = Assignment.at(NOON, random.Random(7))
    source = tmp_path / "deep" / "poems.py"
    source.parent.mkdir()
    source.write_text(f"import os\nPOEM = '{drawn.minute}\\nmoon\\n{drawn.nonce}'\n")
    asked = len(cheat.engine.decodes)

    rule = cheat.refusal()

    assert rule is Rule.IN_A_SOURCE
    assert len(cheat.engine.decodes) == asked


@pytest.mark.req("OC-E2E-9003")
def test_a_source_that_is_written_meanwhile_is_refused(cheat: Cheat, tmp_path: Path) -> None:
    def remember(prompt: str, seed: int, count: int) -> list[str]:
        poem = cheated_poem(prompt, seed, count)
        (tmp_path / "fixture.json").write_text(repr("".join(poem)))
        return poem

    cheat.engine.script = remember

    assert cheat.refusal() is Rule.IN_A_SOURCE


@pytest.mark.req("OC-E2E-9003")
def test_every_source_of_this_repository_is_searched() -> None:
    names = {str(path.relative_to(SOURCES)) for path in source_files(SOURCES)}

    assert {"test_harness/e2e_haiku/poem.py", "README.md", "contracts/metrics.yaml"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "dist/"))]


def ticking(cheat: Cheat, *instants: datetime) -> Callable[[], datetime]:
    """A clock that moves on with every poem that the engine has written, from now on."""
    written = len(cheat.engine.decodes)
    return lambda: instants[min(len(cheat.engine.decodes) - written, len(instants) - 1)]


@pytest.mark.req("OC-E2E-9002")
def test_a_minute_that_flips_is_asked_for_once_more(cheat: Cheat) -> None:
    later = NOON + timedelta(seconds=4)

    accepted = replace(cheat.gate, now=ticking(cheat, NOON, later)).run()

    assert (accepted.minute, accepted.tries) == ("forty-two", 2)


@pytest.mark.req("OC-E2E-9002")
def test_a_poem_of_the_minute_before_is_not_asked_for_a_third_time(cheat: Cheat) -> None:
    cheat.engine.script = lambda prompt, seed, count: ["forty-one\n", "moon\n", "wrong"]
    asked = len(cheat.engine.decodes)
    instants = [NOON, NOON + timedelta(seconds=4), NOON + timedelta(seconds=8)]

    rule = cheat.refusal(now=ticking(cheat, *instants))

    assert rule is Rule.NOT_THE_POEM
    assert len(cheat.engine.decodes) == asked + 2


@pytest.mark.req("OC-E2E-9002")
def test_another_poem_is_not_asked_for_within_the_minute(cheat: Cheat) -> None:
    cheat.engine.script = lambda prompt, seed, count: ["forty-one\n", "moon\n", "wrong"]
    asked = len(cheat.engine.decodes)

    rule = cheat.refusal()

    assert rule is Rule.NOT_THE_POEM
    assert len(cheat.engine.decodes) == asked + 1


@pytest.mark.req("OC-E2E-9002")
def test_a_poem_after_thirty_seconds_is_too_late(cheat: Cheat) -> None:
    late = NOON.replace(second=0) + timedelta(seconds=31)

    rule = cheat.refusal(now=ticking(cheat, NOON.replace(second=0), late))

    assert rule is Rule.TOO_LATE
