"""The scripted engine on scripted time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness_kit.virtual_time import run_virtual
from worker_adapters.adapter_api.types import (
    DecodeEnd,
    DecodeRequest,
    EngineError,
    EngineFault,
    Sampling,
)
from worker_adapters.mock import Misbehaviour, MockAdapter, MockFault, MockScript
from worker_adapters.mock.engine import Cancellable
from worker_adapters.mock.script import answer_of, score_of, split_tokens, vector_of

pytestmark = [
    pytest.mark.req(
        "ORCH-3058", partial="all but the mock engine, which stands in for real ones in other tests"
    )
]
URL = "mock://a"
SAMPLED = Sampling(temperature=0.8)


class Timer:
    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s, self.call, self.cancelled = due_s, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A scheduler that a test turns by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._timers: list[Timer] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Cancellable:
        timer = Timer(self.now_s + delay_s, call)
        self._timers.append(timer)
        return timer

    def run(self, until_s: float = 1e9) -> None:
        while due := [t for t in self._timers if not t.cancelled and t.due_s <= until_s]:
            timer = min(due, key=lambda t: t.due_s)
            self._timers.remove(timer)
            self.now_s = timer.due_s
            timer.call()


class Sink:
    def __init__(self) -> None:
        self.text = b""
        self.end: DecodeEnd | None = None
        self.error: EngineError | None = None
        self.prefill: list[tuple[int, int]] = []

    def on_prefill(self, processed_tokens: int, total_tokens: int) -> None:
        self.prefill.append((processed_tokens, total_tokens))

    def on_tokens(self, pieces: list[bytes]) -> None:
        self.text += b"".join(pieces)

    def on_end(self, end: DecodeEnd) -> None:
        self.end = end

    def on_error(self, error: EngineError) -> None:
        self.error = error


def request_of(prompt: str = "one two", max_tokens: int = 4, *, cold: bool = True) -> DecodeRequest:
    return DecodeRequest(prompt, max_tokens, 7, SAMPLED, cold)


def test_an_answer_depends_on_prompt_seed_sampling_and_salt_alone() -> None:
    base = answer_of("p", 1, SAMPLED, 16)

    assert answer_of("p", 1, SAMPLED, 16) == base
    assert answer_of("q", 1, SAMPLED, 16) != base
    assert answer_of("p", 2, SAMPLED, 16) != base
    assert answer_of("p", 1, Sampling(temperature=0.9), 16) != base
    assert answer_of("p", 1, SAMPLED, 16, "other") != base
    assert answer_of("p", 1, SAMPLED, 8).pieces == base.pieces[:8]


def test_a_greedy_answer_has_no_seed() -> None:
    assert answer_of("p", 1, Sampling(), 16) == answer_of("p", 2, Sampling(), 16)


def test_the_earliest_stop_string_cuts_inside_a_token() -> None:
    whole = "".join(answer_of("p", 1, SAMPLED, 32).pieces)
    early, late = whole[10:13], whole[40:43]
    first = min(whole.index(early), whole.index(late))

    cut = answer_of("p", 1, Sampling(temperature=0.8, stop=(late, early)), 32)

    assert cut.stop_reason == "stop"
    assert "".join(cut.pieces) == whole[:first]
    assert all(cut.pieces)


def test_tokens_add_up_to_the_text() -> None:
    assert split_tokens(" a  bc\nd ") == [" a", "  bc", "\nd", " "]


def test_delays_are_the_schedulers() -> None:
    clock, sink = Clock(), Sink()
    script = MockScript(token_delay_ms=10, prefill_delay_ms=100, prefill_batch_tokens=1)
    client = MockAdapter(script, clock).connect(URL)

    client.decode(request_of(), sink)  # two prompt tokens, four answers
    clock.run()

    assert sink.end is not None
    assert (sink.end.prefill_ms, sink.end.decode_ms) == (200, 40)
    assert sink.prefill == [(0, 2), (1, 2), (2, 2)]
    assert clock.now_s == pytest.approx(0.2 + 5 * 0.01)


def test_a_warm_prefix_is_reused_unless_the_decode_is_cold() -> None:
    clock, warm, cold = Clock(), Sink(), Sink()
    client = MockAdapter(MockScript(), clock).connect(URL)

    client.decode(request_of("one two three"), Sink())
    clock.run()
    client.decode(request_of("one two four", cold=False), warm)
    clock.run()
    client.decode(request_of("one two four"), cold)
    clock.run()

    assert warm.end is not None
    assert cold.end is not None
    assert (warm.end.cached_tokens, cold.end.cached_tokens) == (2, 0)
    assert warm.text == cold.text


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Misbehaviour.DIE, EngineFault.RESET),
        (Misbehaviour.GARBLE, EngineFault.MALFORMED),
        (Misbehaviour.ERROR, EngineFault.INTERNAL),
        (Misbehaviour.SILENT, None),
    ],
)
def test_a_fault_strikes_after_its_tokens_and_once(
    kind: Misbehaviour, fault: EngineFault | None
) -> None:
    clock, struck, spared = Clock(), Sink(), Sink()
    adapter = MockAdapter(MockScript(), clock)
    adapter.engine_at(URL).inject(MockFault(kind, after_tokens=2))
    client = adapter.connect(URL)

    client.decode(request_of(), struck)
    client.decode(request_of(), spared)
    clock.run()

    assert spared.text.startswith(struck.text)
    assert b"" < struck.text < spared.text
    assert (struck.error.fault if struck.error else None) is fault
    assert struck.end is None
    assert spared.end is not None


def test_a_slow_decode_takes_its_time() -> None:
    clock, sink = Clock(), Sink()
    adapter = MockAdapter(MockScript(), clock)
    adapter.engine_at(URL).inject(MockFault(Misbehaviour.SLOW, after_tokens=1, slow_ms=500))

    adapter.connect(URL).decode(request_of(), sink)
    clock.run()

    assert sink.end is not None
    assert clock.now_s == pytest.approx(3 * 0.5)  # tokens two, three and four


@pytest.mark.req("ORCH-3017", partial="the task's end, which is the service's")
def test_slots_are_given_in_arrival_order_and_a_cancel_frees_one() -> None:
    clock = Clock()
    adapter = MockAdapter(MockScript(slots_total=1, token_delay_ms=10), clock)
    engine, client = adapter.engine_at(URL), adapter.connect(URL)
    sinks = [Sink() for _ in range(3)]

    decodes = [client.decode(request_of(max_tokens=100), sink) for sink in sinks]
    clock.run(until_s=0.05)
    decodes[0].cancel()
    decodes[0].cancel()
    seen = sinks[0].text
    clock.run(until_s=0.1)

    assert (engine.running_count, engine.waiting_count) == (1, 1)
    assert sinks[0].text == seen != b""
    assert sinks[1].text
    assert not sinks[2].text


def test_a_dead_engine_comes_back_cold() -> None:
    clock, cut, refused, back = Clock(), Sink(), Sink(), Sink()
    adapter = MockAdapter(MockScript(token_delay_ms=10), clock)
    engine, client = adapter.engine_at(URL), adapter.connect(URL)

    client.decode(request_of(), cut)
    clock.run(until_s=0.02)
    engine.kill()
    client.decode(request_of(), refused)
    clock.run()
    engine.revive()
    client.decode(request_of(cold=False), back)
    clock.run()

    assert cut.error is not None
    assert refused.error is not None
    assert back.end is not None
    assert cut.error.fault is refused.error.fault is EngineFault.RESET
    assert back.end.cached_tokens == 0


def test_one_url_is_one_engine_whoever_connects() -> None:
    adapter = MockAdapter()

    assert adapter.engine_at(URL) is adapter.engine_at(URL)
    assert adapter.engine_at(URL) is not adapter.engine_at("mock://b")


def test_workloads_without_the_feature_are_unsupported() -> None:
    client = MockAdapter(MockScript(features=frozenset())).connect(URL)

    async def fault() -> EngineFault:
        with pytest.raises(EngineError) as failure:
            await client.embed(["a"])
        return failure.value.fault

    assert run_virtual(fault()) is EngineFault.UNSUPPORTED


def test_vectors_and_scores_are_figures_of_the_text() -> None:
    assert vector_of("a") == vector_of("a") != vector_of("b")
    assert score_of("Two dogs", "two big dogs") == 1.0
    assert score_of("two dogs", "a dog of two") == 0.5
    assert score_of("", "anything") == 0.0
