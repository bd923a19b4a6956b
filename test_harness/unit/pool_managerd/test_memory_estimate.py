"""Weights, KV and the rest, device by device; figures worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.launch_profiles.llamacpp import CPU_LAUNCHER, SERVER
from pool_managerd.memory_estimate import (
    GIB,
    MIB,
    Demand,
    EngineMemory,
    EstimatedLaunch,
    Room,
    size_text,
)
from pool_managerd.memory_fit import Available, Fit, Shortfall, Wanted, fit
from pool_managerd.model_files import find_model
from pool_managerd.model_geometry import LayerGeometry, ModelGeometry, read_geometry

# Four layers of 1000 bytes, 10 bytes of KV a token each; an output of its own.
MODEL = ModelGeometry(
    name="m",
    architecture="llama",
    layers=(LayerGeometry(1000, 10),) * 4,
    embedding_bytes=400,
    output_bytes=500,
    other_bytes=0,
    vocab=100,
    embedding=8,
    feed_forward=16,
)
LAYERS = EngineMemory("layers", 2, 7000, 9000, 0, True)
TENSORS = EngineMemory("tensors", 2, 7000, 9000, 0, False)
# Activations: 2 tokens x (2 x 16 + 8 x 8) x 4 = 768.
ACTIVATIONS = 768


def demands(launch: EstimatedLaunch, slots: int, ctx: int) -> list[Demand]:
    return [demand for _, demand in launch.estimate(slots, ctx).devices]


@pytest.mark.req("ORCH-3003", partial="the check and what follows from it")
def test_on_a_cpu_everything_is_in_host_memory() -> None:
    estimate = EstimatedLaunch(MODEL, LAYERS).estimate(slots=3, ctx=50)

    # Mask 2 x 50 x 2, logits 3 x 100 x 4.
    assert estimate.host == Demand(4900, 40 * 50 * 3, ACTIVATIONS + 200 + 1200, 9000)
    assert estimate.devices == ()
    assert estimate.kv_token_bytes == (40,)


@pytest.mark.req("ORCH-3012", partial="the configuration's rules and the launch")
@pytest.mark.req("OC-POOL-3021", partial="the configuration's rules and the launch")
@pytest.mark.parametrize(
    ("shares", "layers"),
    [
        # Places 0, .2, .4, .6 of the layers and .8 of the output, against the running shares.
        ((1.0, 1.0), (3, 1)),
        ((3.0, 1.0), (4, 0)),
        ((1.0, 3.0), (2, 2)),
        ((1.0, 1.0, 2.0), (2, 1, 1)),
    ],
)
def test_layers_and_their_kv_are_dealt_out_by_the_ratios(
    shares: tuple[float, ...], layers: tuple[int, ...]
) -> None:
    names = tuple(str(number) for number in range(len(shares)))
    launch = EstimatedLaunch(MODEL, LAYERS, names, shares)

    estimate = launch.estimate(slots=1, ctx=50)

    output = [0] * (len(shares) - 1) + [500]
    weights = [count * 1000 + more for count, more in zip(layers, output, strict=True)]
    assert [demand.weights_bytes for _, demand in estimate.devices] == weights
    assert [demand.kv_bytes for _, demand in estimate.devices] == [500 * count for count in layers]
    assert estimate.kv_token_bytes == tuple(10 * count for count in layers)
    assert {demand.runtime_bytes for _, demand in estimate.devices} == {7000}
    # The table of embeddings stays on the host.
    assert estimate.host.weights_bytes == 400


def test_llama_cpps_own_figures_for_two_devices_are_met() -> None:
    # llama.cpp deals 30 layers and the output of SmolLM2 out by 3:1 as 24 and 7.
    model = read_geometry(find_model("builtin:smollm2").path)
    memory = SERVER.memory
    assert memory is not None

    first, second = demands(EstimatedLaunch(model, memory, ("0", "1"), (3.0, 1.0)), 4, 2048)

    assert (first.kv_bytes, second.kv_bytes) == (144 * MIB, 36 * MIB)


def test_a_table_that_is_used_twice_is_there_twice() -> None:
    tied = replace(MODEL, output_bytes=4)

    (demand,) = demands(EstimatedLaunch(tied, LAYERS, ("0",)), 1, 50)

    assert demand.weights_bytes == 4000 + 4 + 400


def test_tensors_are_shared_evenly() -> None:
    first, second = demands(EstimatedLaunch(MODEL, TENSORS, ("0", "1")), 2, 50)

    assert first == second == Demand(2450, 2000, ACTIVATIONS + 200 + 800, 7000)


def test_a_window_bounds_the_kv_of_its_layer() -> None:
    windowed = replace(MODEL, layers=(LayerGeometry(0, 10, 300), LayerGeometry(0, 10)))
    launch = EstimatedLaunch(windowed, LAYERS)

    # 300 + a batch of 2, rounded up to 512 cells; the other layer keeps all.
    assert launch.estimate(1, 4096).host.kv_bytes == 10 * 512 + 10 * 4096
    assert launch.estimate(1, 100).host.kv_bytes == 20 * 100


@pytest.mark.req("ORCH-3020", partial="what admission does with it")
def test_a_draft_model_and_a_prefix_cache_are_counted() -> None:
    plain = EstimatedLaunch(MODEL, LAYERS, ("0",))
    both = EstimatedLaunch(MODEL, LAYERS, ("0",), draft=MODEL, prefix_cache_bytes=12345)

    (without,), (device,) = demands(plain, 2, 50), demands(both, 2, 50)
    cpu = EstimatedLaunch(MODEL, LAYERS, draft=MODEL, prefix_cache_bytes=12345).estimate(2, 50)

    # Its layers, output, KV and scratch; its table of embeddings on the host.
    assert device.draft_bytes == 4500 + 40 * 50 * 2 + ACTIVATIONS + 200 + 800
    assert device.total_bytes - without.total_bytes == device.draft_bytes
    host = both.estimate(2, 50).host
    assert (host.draft_bytes, host.prefix_cache_bytes) == (400, 12345)
    assert (cpu.host.draft_bytes, cpu.host.prefix_cache_bytes) == (
        4900 + 4000 + ACTIVATIONS + 200 + 800,
        12345,
    )
    # A token costs its KV in both models.
    assert both.estimate(2, 50).kv_token_bytes == (80,)
    # Admission also counts each token's part of the prefix cache, 12345 over 100 tokens.
    assert plain.estimate(2, 50).task_token_bytes == 40
    assert both.estimate(2, 50).task_token_bytes == 80 + 124


@pytest.mark.req("ORCH-3052")
@pytest.mark.req("OC-POOL-3021", partial="the configuration's rules and the launch")
def test_the_device_with_the_least_room_for_its_share_bounds_the_kv_of_all() -> None:
    estimate = EstimatedLaunch(MODEL, LAYERS, ("0", "1"), (1.0, 1.0)).estimate(1, 50)
    rest = [demand.total_bytes - demand.kv_bytes for _, demand in estimate.devices]

    # 3 layers on the first: 30 bytes a token; 1 on the second: 10.
    rooms = {"0": Room(rest[0] + 3000, 10**6), "1": Room(rest[1] + 5000, 10**6)}
    small = rooms | {"1": Room(rest[1] + 100, 10**6)}

    assert estimate.kv_tokens_max(rooms, None, 0.0) == 100
    assert estimate.kv_tokens_max(small, None, 0.0) == 10
    assert estimate.kv_tokens_max({}, Room(1, 1), 0.0) is None


def test_the_headroom_is_a_share_of_all_memory() -> None:
    estimate = EstimatedLaunch(MODEL, LAYERS).estimate(1, 50)
    needed = estimate.host.total_bytes

    assert estimate.shortages({}, Room(needed + 100, 1000), 0.1) == ()
    (shortage,) = estimate.shortages({}, Room(needed + 99, 1000), 0.1)
    assert (shortage.place, shortage.reserve_bytes) == ("host", 100)


def test_of_memory_that_is_not_known_nothing_is_said() -> None:
    estimate = EstimatedLaunch(MODEL, LAYERS, ("0",)).estimate(1, 50)

    assert estimate.shortages({}, None, 0.5) == ()


@pytest.mark.req("ORCH-3003", partial="the check and what follows from it")
@pytest.mark.req("OC-POOL-3002", partial="Unready and the backoff")
def test_a_shortfall_says_what_is_needed_what_is_there_and_what_would_fit() -> None:
    # 1 MiB of KV a token in all.
    layers = (LayerGeometry(2 * GIB, 256 * 1024),) * 4
    model = replace(MODEL, layers=layers, output_bytes=0, embedding_bytes=0)
    engine = EngineMemory("layers", 1, 0, 0, 0, True)
    launch = EstimatedLaunch(model, engine, ("0",))
    room = Available({"0": Room(10 * GIB, 24 * GIB)}, None)

    result = fit(launch, Wanted(slots=4, ctx=1024), room)

    # 8 GiB of weights leave 2048 MiB less a little scratch for 4 x 1024 MiB.
    assert isinstance(result, Shortfall)
    assert str(result) == (
        "needs 12.0 GiB on GPU 0 (weights 8.0 GiB, KV 4.0 GiB, scratch 0 MiB), 10.0 GiB are free; "
        "it would fit with 1 slot instead of 4 or ctx 256 instead of 1024"
    )


@pytest.mark.req("ORCH-3039", partial="how exhaustion is told apart")
def test_slots_give_way_before_context_and_neither_below_its_minimum() -> None:
    launch = EstimatedLaunch(MODEL, EngineMemory("layers", 1, 0, 0, 0, True))

    def with_free(
        free_bytes: int, slots_min: int | None, ctx_min: int | None
    ) -> tuple[int, int] | None:
        wanted = Wanted(4, 1024, slots_min, ctx_min)
        result = fit(launch, wanted, Available({}, Room(free_bytes, 10**9)))
        return (result.estimate.slots, result.estimate.ctx) if isinstance(result, Fit) else None

    two_slots = launch.estimate(2, 1024).host.total_bytes
    two_short_slots = launch.estimate(2, 512).host.total_bytes
    assert with_free(10**9, None, None) == (4, 1024)
    assert with_free(two_slots, 1, None) == (2, 1024)
    assert with_free(two_slots, 3, None) is None
    assert with_free(two_slots - 1, 2, 256) == (2, 768)
    assert with_free(two_short_slots, 2, 256) == (2, 512)
    assert with_free(two_short_slots - 1, 2, 512) is None
    assert with_free(two_short_slots, None, None) is None


@given(
    free_bytes=st.integers(0, 2 * 10**5),
    slots=st.integers(1, 16),
    ctx=st.integers(1, 2000),
    slots_min=st.none() | st.integers(1, 16),
    ctx_min=st.none() | st.integers(1, 2000),
    shares=st.lists(st.floats(0.1, 10), max_size=3).map(tuple),
)
def test_what_is_said_to_fit_fits_and_respects_its_minima(
    free_bytes: int,
    slots: int,
    ctx: int,
    slots_min: int | None,
    ctx_min: int | None,
    shares: tuple[float, ...],
) -> None:
    names = tuple(str(number) for number in range(len(shares)))
    launch = EstimatedLaunch(MODEL, EngineMemory("layers", 2, 100, 100, 1, True), names, shares)
    rooms = {name: Room(free_bytes, 10**6) for name in names}
    available = Available(rooms, Room(free_bytes, 10**6), 0.01)

    result = fit(launch, Wanted(slots, ctx, slots_min, ctx_min), available)

    if isinstance(result, Fit):
        found = result.estimate
        assert not found.shortages(rooms, available.host, 0.01)
        assert min(slots, slots_min or slots) <= found.slots <= slots
        assert min(ctx, ctx_min or ctx) <= found.ctx <= ctx
        assert result.reduced == ((found.slots, found.ctx) != (slots, ctx))
    else:
        for smaller in (
            None if result.slots is None else launch.estimate(result.slots, ctx),
            None if result.ctx is None else launch.estimate(slots, result.ctx),
        ):
            assert smaller is None or not smaller.shortages(rooms, available.host, 0.01)


def test_sizes_read_as_people_write_them() -> None:
    assert [size_text(size) for size in (0, 350 * MIB, GIB, int(9.4 * GIB))] == [
        *("0 MiB", "350 MiB", "1.0 GiB", "9.4 GiB")
    ]


def test_the_cpu_launchers_figures_are_in_the_estimate() -> None:
    memory = CPU_LAUNCHER.memory
    assert memory is not None

    estimate = EstimatedLaunch(MODEL, memory).estimate(1, 50)

    assert estimate.host.runtime_bytes == 48 * MIB + 256 * 100
