"""Which objectives a configuration asks for, and how soon the end of a violation is noticed."""

from __future__ import annotations

import pytest

from orch_config import Config
from orch_config.types import Admission, BatchSlo, CircuitBreaker, InteractiveSlo, Pool, Slos
from orchestrator_core.task import Priority
from orchestratord.services.slo import Objective
from orchestratord.settings import slo_notice_s, slo_objectives

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
OBJECTIVES = [
    Objective(INTERACTIVE, "first_token_p95_ms", 900),
    Objective(INTERACTIVE, "tokens_64_p95_ms", 2_500),
    Objective(INTERACTIVE, "error_ratio", 0.005),
    Objective(BATCH, "throughput_ratio", 0.8),
    Objective(BATCH, "error_ratio", 0.01),
]


@pytest.mark.req("ORCH-3041", partial="the defaults")
def test_without_a_word_in_the_configuration_the_objectives_are_the_requirement_s() -> None:
    assert slo_objectives(Config()) == OBJECTIVES


@pytest.mark.req("ORCH-3041", partial="the configuration")
def test_an_objective_that_is_null_is_none() -> None:
    slos = Slos(
        interactive=InteractiveSlo(first_token_p95_ms=None, tokens_64_p95_ms=3_000),
        batch=BatchSlo(throughput_ratio=None, error_ratio=None),
    )

    objectives = slo_objectives(Config(slos=slos))

    assert objectives == [
        Objective(INTERACTIVE, "tokens_64_p95_ms", 3_000),
        Objective(INTERACTIVE, "error_ratio", 0.005),
    ]


def pool(name: str, *, open_after_s: int, enabled: bool = True) -> Pool:
    breaker = CircuitBreaker(enabled=enabled, open_after_s=open_after_s)
    return Pool(
        id=name,
        engine="llamacpp",
        model="m",
        quant="q4",
        ctx=512,
        admission=Admission(circuit_breaker=breaker),
    )


def test_a_breaker_hears_of_the_end_of_a_violation_before_it_refuses_more() -> None:
    quick, slow = pool("a", open_after_s=20), pool("b", open_after_s=60)
    off = pool("c", open_after_s=2, enabled=False)

    notices = [slo_notice_s(Config(pools=pools)) for pools in ((quick, slow, off), (off,), ())]

    assert notices == [10, None, None]
