"""The size of the model store: measured in a thread, forgotten when it cannot be known."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
from prometheus_client import CollectorRegistry, Gauge
from structlog.testing import capture_logs

from orchestratord.services.model_store_size import ModelStoreSize

pytestmark = pytest.mark.req("ORCH-3042", partial="the store itself")
WAIT_S = 10.0


def gauge() -> Gauge:
    return Gauge("model_store_bytes", "Size.", registry=CollectorRegistry())


def shown(of: Gauge) -> float:
    (family,) = of.collect()
    return family.samples[0].value


def test_the_event_loop_goes_on_while_the_store_is_measured() -> None:
    may_answer = threading.Event()
    size = gauge()

    def measure() -> int | None:
        return 42 if may_answer.wait(WAIT_S) else None

    async def scenario() -> float:
        look = asyncio.create_task(ModelStoreSize(measure, size).look())
        await asyncio.sleep(0)
        meanwhile = shown(size)
        may_answer.set()
        await look
        return meanwhile

    meanwhile = asyncio.run(scenario())

    assert math.isnan(meanwhile)
    assert shown(size) == 42


def test_a_size_that_is_not_known_any_more_is_not_shown() -> None:
    answers: list[int | None] = [42, None]
    size = gauge()
    store = ModelStoreSize(lambda: answers.pop(0), size)

    asyncio.run(store.look())
    before = shown(size)
    asyncio.run(store.look())

    assert before == 42
    assert math.isnan(shown(size))


def test_a_measurement_that_fails_is_logged_and_forgets_the_size() -> None:
    answers = [42]
    size = gauge()
    store = ModelStoreSize(lambda: answers.pop(), size)

    asyncio.run(store.look())
    with capture_logs() as logs:
        asyncio.run(store.look())

    assert math.isnan(shown(size))
    assert [line["event"] for line in logs] == ["model_store.not_measured"]
