"""How much memory an engine will take, device by device, and whether that is there.

Pure; asked before a launch and by `pools plan`. The estimate of one process:

- weights: bytes of the tensors, as the file says;
- KV: bytes of a token in each layer x tokens of the context x slots, in f16; a layer with a
  sliding window keeps the window and one batch, rounded up to 256 cells, as llama.cpp does;
- scratch: activations of one batch, `batch x (2 feed_forward + 8 embedding) x 4` bytes, its
  attention mask, `batch x ctx x 2`, and one row of logits a slot, `slots x vocab x 4` (fitted to
  what llama.cpp reports as its compute buffer: 2.1 MiB at 64 tokens a batch, 16.6 at 512);
- runtime: what the engine takes whatever its model, and its vocabulary in host memory;
- a draft model, counted as a model of its own, and the prefix cache in host memory (ORCH-3020).

With several devices, layers (llama.cpp) or tensors (vLLM, TGI) are dealt out by the split's ratios.
Invariant: KV is dealt out with its layers, so the device with the least room for its share bounds
the KV of all of them (ORCH-3052). Requirements: ORCH-3003, ORCH-3012, ORCH-3020, ORCH-3052,
OC-POOL-3021.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pool_managerd.model_geometry.geometry import LayerGeometry, ModelGeometry

MIB = 1024 * 1024
GIB = 1024 * MIB
HOST = "host"
_WINDOW_CELLS = 256  # llama.cpp pads a windowed cache to this many cells


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """What an engine takes beside its model; one for each launch profile.

    `batch_tokens` are those of one forward pass. The runtimes are of one process: CUDA context and
    libraries on each device, interpreter, libraries and server in the host's memory.
    """

    split: Literal["layers", "tensors"]
    batch_tokens: int
    device_runtime_bytes: int
    host_runtime_bytes: int
    host_bytes_per_vocab_entry: int
    embedding_on_host: bool


@dataclass(frozen=True, slots=True)
class Room:
    """Memory of a device or of the host as it is now, in bytes."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What one process takes in one place, in bytes."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    scratch_bytes: int = 0
    runtime_bytes: int = 0
    draft_bytes: int = 0
    prefix_cache_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.parts())

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name and bytes of every part."""
        return (
            ("weights", self.weights_bytes),
            ("KV", self.kv_bytes),
            ("scratch", self.scratch_bytes),
            ("runtime", self.runtime_bytes),
            ("draft model", self.draft_bytes),
            ("prefix cache", self.prefix_cache_bytes),
        )


@dataclass(frozen=True, slots=True)
class Shortage:
    """One place whose free memory does not hold the demand; `reserve_bytes` shall stay free."""

    place: str
    demand: Demand
    room: Room
    reserve_bytes: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in self.demand.parts() if size)
        kept = f" and {size_text(self.reserve_bytes)} shall stay free" if self.reserve_bytes else ""
        return (
            f"needs {size_text(self.demand.total_bytes)} {where(self.place)} ({parts}), "
            f"{size_text(self.room.free_bytes)} are free{kept}"
        )


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """One engine process with `slots` tasks of `ctx` tokens each.

    `devices` has one entry per device of the mask, in its order, none on a CPU; `kv_token_bytes`
    are what one more token costs on each of them, windows left out (on a CPU: on the host).
    `task_token_bytes` is what admission counts for a token of a task's context, wherever it lies:
    its KV in the model and in the draft model, and its part of the prefix cache (ORCH-3020).
    """

    slots: int
    ctx: int
    devices: tuple[tuple[str, Demand], ...]
    host: Demand
    kv_token_bytes: tuple[int, ...]
    task_token_bytes: int

    def places(self) -> tuple[tuple[str, Demand], ...]:
        """Every device and the host."""
        return (*self.devices, (HOST, self.host))

    def shortages(
        self, devices: Mapping[str, Room], host: Room | None, headroom_ratio: float
    ) -> tuple[Shortage, ...]:
        """The places whose free memory is too small; of unknown ones nothing is said."""
        rooms = dict(devices) if host is None else {**devices, HOST: host}
        found = []
        for place, demand in self.places():
            room = rooms.get(place)
            if room is None:
                continue
            reserve_bytes = int(room.total_bytes * headroom_ratio)
            if demand.total_bytes + reserve_bytes > room.free_bytes:
                found.append(Shortage(place, demand, room, reserve_bytes))
        return tuple(found)

    def kv_tokens_max(
        self, devices: Mapping[str, Room], host: Room | None, headroom_ratio: float
    ) -> int | None:
        """Tokens whose KV fits beside everything else: the least of what the devices have room for.

        None where the memory of no place that holds KV is known. Source: ORCH-3052.
        """
        rooms = dict(devices) if self.devices else ({} if host is None else {HOST: host})
        holders = self.devices or ((HOST, self.host),)
        fitting = [
            max(0, room.free_bytes - int(room.total_bytes * headroom_ratio) - rest) // token_bytes
            for (place, demand), token_bytes in zip(holders, self.kv_token_bytes, strict=True)
            if token_bytes
            and (room := rooms.get(place)) is not None
            and (rest := demand.total_bytes - demand.kv_bytes) >= 0
        ]
        return min(fitting, default=None)


@dataclass(frozen=True, slots=True)
class EstimatedLaunch:
    """What is to be estimated. `shares` are the split's ratios, one per device."""

    model: ModelGeometry
    engine: EngineMemory
    devices: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    draft: ModelGeometry | None = None
    prefix_cache_bytes: int = 0

    def estimate(self, slots: int, ctx: int) -> MemoryEstimate:
        """The memory of one engine with so many slots of so many tokens."""
        engine, model = self.engine, self.model
        task_token_bytes = (
            model.kv_bytes_per_token
            + (0 if self.draft is None else self.draft.kv_bytes_per_token)
            + -(-self.prefix_cache_bytes // (slots * ctx))
        )
        vocabularies = model.vocab + (0 if self.draft is None else self.draft.vocab)
        host = Demand(
            runtime_bytes=engine.host_runtime_bytes
            + engine.host_bytes_per_vocab_entry * vocabularies,
            prefix_cache_bytes=self.prefix_cache_bytes,
        )
        if not self.devices:
            own = _on_one(model, engine, slots, ctx)
            host = replace(
                host,
                weights_bytes=own.weights_bytes,
                kv_bytes=own.kv_bytes,
                scratch_bytes=own.scratch_bytes,
                draft_bytes=self._draft_bytes(slots, ctx),
            )
            own_token = (model.kv_bytes_per_token,)
            return MemoryEstimate(slots, ctx, (), host, own_token, task_token_bytes)
        shares = self.shares or (1.0,) * len(self.devices)
        demands = _dealt(model, engine, shares, slots, ctx)
        if self.draft is not None:
            drafts = _dealt(self.draft, engine, shares, slots, ctx)
            demands = [
                (replace(demand, draft_bytes=draft.total_bytes), token + draft_token)
                for (demand, token), (draft, draft_token) in zip(demands, drafts, strict=True)
            ]
        if engine.embedding_on_host:
            host = replace(
                host,
                weights_bytes=model.embedding_bytes,
                scratch_bytes=4 * slots * model.vocab,
                draft_bytes=0 if self.draft is None else self.draft.embedding_bytes,
            )
        return MemoryEstimate(
            slots,
            ctx,
            tuple(
                (device, replace(demand, runtime_bytes=engine.device_runtime_bytes))
                for device, (demand, _) in zip(self.devices, demands, strict=True)
            ),
            host,
            tuple(token for _, token in demands),
            task_token_bytes,
        )

    def _draft_bytes(self, slots: int, ctx: int) -> int:
        if self.draft is None:
            return 0
        return _on_one(self.draft, self.engine, slots, ctx).total_bytes


def _on_one(model: ModelGeometry, engine: EngineMemory, slots: int, ctx: int) -> Demand:
    """A model in one place."""
    return Demand(
        weights_bytes=model.weights_bytes,
        kv_bytes=sum(_kv_bytes(layer, engine, slots, ctx) for layer in model.layers),
        scratch_bytes=_scratch_bytes(model, engine, slots, ctx),
    )


def _dealt(
    model: ModelGeometry,
    engine: EngineMemory,
    shares: Sequence[float],
    slots: int,
    ctx: int,
) -> list[tuple[Demand, int]]:
    """Demand and KV bytes per token of each device."""
    scratch_bytes = _scratch_bytes(model, engine, slots, ctx)
    if engine.split == "tensors":
        whole = _on_one(model, engine, slots, ctx)
        count = len(shares)
        part = Demand(-(-whole.weights_bytes // count), -(-whole.kv_bytes // count), scratch_bytes)
        return [(part, -(-model.kv_bytes_per_token // count))] * count
    # llama.cpp deals out the layers and, as one more, what stands after the last of them: number i
    # of n goes where the running sum of the ratios first exceeds i / n (llama-model.cpp).
    total = sum(shares)
    ends = [end / total for end in accumulate(shares)]
    places = len(model.layers) + 1
    weights, kv, token = ([0] * len(shares) for _ in range(3))
    for number, layer in enumerate(model.layers):
        device = min(bisect_right(ends, number / places), len(shares) - 1)
        weights[device] += layer.weights_bytes
        kv[device] += _kv_bytes(layer, engine, slots, ctx)
        token[device] += layer.kv_bytes_per_token
    last = min(bisect_right(ends, len(model.layers) / places), len(shares) - 1)
    # The table of embeddings stays in host memory, and is there twice where it is the output too.
    weights[last] += model.output_bytes + model.other_bytes
    weights[last] += model.embedding_bytes if model.tied or not engine.embedding_on_host else 0
    return [
        (Demand(weights[device], kv[device], scratch_bytes), token[device])
        for device in range(len(shares))
    ]


def _kv_bytes(layer: LayerGeometry, engine: EngineMemory, slots: int, ctx: int) -> int:
    cells = ctx
    if layer.window_tokens is not None:
        window = layer.window_tokens + engine.batch_tokens
        cells = min(ctx, -(-window // _WINDOW_CELLS) * _WINDOW_CELLS)
    return layer.kv_bytes_per_token * cells * slots


def _scratch_bytes(model: ModelGeometry, engine: EngineMemory, slots: int, ctx: int) -> int:
    batch = engine.batch_tokens
    activations = batch * (2 * model.feed_forward + 8 * model.embedding) * 4
    return activations + batch * ctx * 2 + slots * model.vocab * 4


def where(place: str) -> str:
    """A place in a sentence."""
    if place == HOST:
        return "of host memory"
    return f"on GPU {place}"


def size_text(size_bytes: int) -> str:
    """Bytes as a person says them: 9.4 GiB, 350 MiB."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / MIB:.0f} MiB"
