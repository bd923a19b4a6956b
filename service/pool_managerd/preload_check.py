"""Whether an engine's memory is there before it is started, and what is started if not all is.

Between the supervisors of launched replicas and the estimate; asked once for each start, in a
thread, because it reads model files. Invariants: engines that start together do not count the same
free memory twice (what one was granted is held until it is Ready or gone); whoever waits for
another start waits for arithmetic, never for a disk; what is not known (no driver, a format that we
cannot read) is not checked and is said; a file that no engine can load starts none; a GPU that is
not in the mask is never counted. After an engine has run out of GPU memory its pool's estimate is
higher by a tenth at least; where that leaves nothing that fits, the next start is tried by the
plain estimate, because somebody else may have taken the memory. Requirements: ORCH-3003, ORCH-3011,
ORCH-3012, ORCH-3020, ORCH-3039, ORCH-3052, OC-POOL-3002, OC-POOL-3021.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from gpu_telemetry.snapshot import HostGpus
from gpu_telemetry.topology import device_of
from pool_managerd.device_masks import DeviceMasks
from pool_managerd.host_memory import read_host_memory
from pool_managerd.launch_profiles import LaunchRefused, profile_of
from pool_managerd.memory_estimate import HOST, MIB, EstimatedLaunch, MemoryEstimate, Room
from pool_managerd.memory_fit import Available, Fit, Shortfall, Wanted, fit
from pool_managerd.model_files import ModelUnavailable, find_model
from pool_managerd.model_geometry import (
    ModelFileBroken,
    ModelFileError,
    ModelGeometry,
    gguf_geometry,
    read_geometry,
)
from pool_managerd.settings import LaunchSettings, PoolSettings

# Boards of one kind differ a little where ECC or a display takes some.
ALIKE_RATIO = 0.02
EXHAUSTED_RATIO = 0.1
EXHAUSTED_BYTES_MIN = 256 * MIB
GEOMETRIES_MAX = 256

_log = structlog.get_logger(__name__)


class DoesNotFit(Exception):
    """The memory that the engine needs is not free; the message has the numbers."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What to start: `slots` None leaves them to the engine. `result` is None where there is no
    estimate, and `unchecked` then says why; `available` is what it was compared with. `mask` are
    the pool's devices by their UUIDs, where they are known."""

    slots: int | None
    ctx: int
    result: Fit | Shortfall | None = None
    available: Available | None = None
    unchecked: str = ""
    mask: tuple[str, ...] = ()

    @property
    def estimate(self) -> MemoryEstimate | None:
        return None if self.result is None else self.result.estimate

    @property
    def reduced(self) -> bool:
        """Whether that is less than what is configured."""
        return isinstance(self.result, Fit) and self.result.reduced

    @property
    def rooms(self) -> Mapping[str, Room]:
        """Free memory by place, of those that are known."""
        if self.available is None:
            return {}
        host = self.available.host
        return {**self.available.devices, **({} if host is None else {HOST: host})}

    @property
    def kv_tokens_max(self) -> int | None:
        """Tokens whose KV fits; None where that is not known (ORCH-3052)."""
        if self.estimate is None or self.available is None:
            return None
        seen = self.available
        return self.estimate.kv_tokens_max(seen.devices, seen.host, seen.headroom_ratio)

    @property
    def kv_bytes_per_device(self) -> int | None:
        """The most KV of one device (on a CPU: of the host); None without an estimate."""
        if self.estimate is None:
            return None
        held = [demand.kv_bytes for _, demand in self.estimate.devices]
        return max(held, default=self.estimate.host.kv_bytes)


class MemoryHold:
    """While it is held, other starts find this memory taken. Released by `release`, from any
    thread, at the latest with the object: a start that is called off drops it."""

    def __init__(self, held: dict[int, MemoryEstimate], number: int) -> None:
        # `pop` is one step of the interpreter: no lock, which the collector could meet taken.
        self.release: Callable[[], object] = weakref.finalize(self, held.pop, number, None)


@dataclass(frozen=True, slots=True)
class _Question:
    """A launch with all that was read for it; its answer is arithmetic."""

    pool: PoolSettings
    slots: int | None
    estimated: EstimatedLaunch
    wanted: Wanted
    gpus: HostGpus
    host: Room | None


class PreloadCheck:
    """`gpus` is the last look at this host's GPUs; `host_memory` None: not known."""

    def __init__(
        self,
        gpus: Callable[[], HostGpus],
        host_memory: Callable[[], Room | None] = read_host_memory,
    ) -> None:
        self.gpus = gpus
        self._masks = DeviceMasks(gpus)
        self._host_memory = host_memory
        # Starts are admitted in threads; the event loop takes this lock as well.
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._held: dict[int, MemoryEstimate] = {}
        self._extra_bytes: dict[str, int] = {}
        self._geometries: dict[tuple[str, str, int], ModelGeometry] = {}

    def admit(self, pool: PoolSettings, launch: LaunchSettings) -> tuple[LaunchPlan, MemoryHold]:
        """The plan of a start, and what holds its memory. Reads model files: not for the event
        loop. Raises `DoesNotFit`, `DeviceGone`, `LaunchRefused` for a mask or a split that this
        host cannot have, `ModelUnavailable` for a file that no engine can load."""
        mask = self._masks.resolve(pool)
        number = next(self._numbers)
        hold = MemoryHold(self._held, number)
        question = self._question(pool, launch)
        if isinstance(question, LaunchPlan):
            plan = question
        else:
            with self._lock:
                plan = self._answer(question, self._extra_bytes.get(pool.id, 0))
                if isinstance(plan.result, Shortfall) and pool.memory.check:
                    self._extra_bytes.pop(pool.id, None)
                    raise DoesNotFit(str(plan.result))
                assert plan.estimate is not None
                self._held[number] = plan.estimate
        if plan.unchecked:
            _log.info("preload.unchecked", pool_id=pool.id, cause=plan.unchecked)
        if plan.reduced:
            _log.warning("preload.reduced", pool_id=pool.id, slots=plan.slots, ctx=plan.ctx)
        return replace(plan, mask=mask), hold

    def preview(self, pool: PoolSettings, launch: LaunchSettings) -> LaunchPlan:
        """As `admit`, with a shortfall in the plan; what fits is held for good, so that the next
        preview finds it taken. Raises `DeviceGone`, `LaunchRefused` and `ModelUnavailable`."""
        mask = self._masks.resolve(pool)
        question = self._question(pool, launch)
        if isinstance(question, LaunchPlan):
            return replace(question, mask=mask)
        with self._lock:
            plan = self._answer(question, 0)
            if isinstance(plan.result, Fit):
                self._held[next(self._numbers)] = plan.result.estimate
            return replace(plan, mask=mask)

    def exhausted(self, pool_id: str, estimate: MemoryEstimate | None) -> None:
        """An engine started by `estimate` ran out of GPU memory: the pool's next estimate is higher
        (ORCH-3039)."""
        demands = () if estimate is None else estimate.devices
        largest = max((demand.total_bytes for _, demand in demands), default=0)
        more = max(EXHAUSTED_BYTES_MIN, int(largest * EXHAUSTED_RATIO))
        with self._lock:
            self._extra_bytes[pool_id] = self._extra_bytes.get(pool_id, 0) + more

    def _question(self, pool: PoolSettings, launch: LaunchSettings) -> _Question | LaunchPlan:
        """What to compare, or the plan where nothing can be compared."""
        try:
            profile = profile_of(pool, launch)
        except LaunchRefused as error:
            if launch.command is None:
                raise
            return LaunchPlan(launch.slots, pool.ctx, unchecked=str(error))
        slots = launch.slots or profile.slots
        unknown = LaunchPlan(slots, pool.ctx)
        gpus = self.gpus()
        mask = () if profile.on_cpu else pool.devices
        _prove_alike(pool, mask, gpus)
        if profile.memory is None:
            return replace(unknown, unchecked=f"no estimate is made for {pool.engine}")
        if not mask and gpus.devices and not profile.on_cpu:
            return replace(unknown, unchecked="the pool has no device mask (devices)")
        named = (*(launch.command or ()), *launch.args)
        if launch.command is not None and not any("{model}" in word for word in named):
            return replace(unknown, unchecked="launch.command does not name {model}")
        try:
            model = self._geometry(pool.engine, pool.model)
            draft = (
                None
                if launch.draft_model is None
                else self._geometry(pool.engine, launch.draft_model)
            )
        except ModelFileBroken as error:
            if launch.command is None and pool.memory.check:
                raise ModelUnavailable(str(error)) from error
            return replace(unknown, unchecked=str(error))
        except (ModelUnavailable, ModelFileError) as error:
            return replace(unknown, unchecked=str(error))
        engine = profile.memory
        if pool.deterministic_prefix_cache and pool.engine == "llamacpp":
            engine = replace(engine, batch_tokens=1)
        estimated = EstimatedLaunch(
            model, engine, mask, pool.tensor_split or (), draft, launch.prefix_cache_bytes
        )
        # A command of one's own is filled in with the context, and knows nothing of our slots.
        shrinks = launch.command is None
        wanted = Wanted(
            slots or 1,
            pool.ctx,
            pool.memory.slots_min if shrinks and slots is not None else None,
            pool.memory.ctx_min if shrinks else None,
        )
        # Memory last: reading the files may have taken long.
        return _Question(pool, slots, estimated, wanted, self.gpus(), self._host_memory())

    def _answer(self, question: _Question, extra_bytes: int) -> LaunchPlan:
        """The plan beside all that is held now."""
        slots, estimated = question.slots, question.estimated
        engine = estimated.engine
        engine = replace(engine, device_runtime_bytes=engine.device_runtime_bytes + extra_bytes)
        available = self._available(question)
        result = fit(replace(estimated, engine=engine), question.wanted, available)
        if isinstance(result, Shortfall):
            return LaunchPlan(slots, question.pool.ctx, result, available)
        fitting = result.estimate
        return LaunchPlan(slots if slots is None else fitting.slots, fitting.ctx, result, available)

    def _geometry(self, engine: str, model: str) -> ModelGeometry:
        path = find_model(model).path
        try:
            key = (engine, str(path), path.stat().st_mtime_ns)
        except OSError as error:
            raise ModelFileError(f"model file {path}: {error.strerror or error}") from error
        known = self._geometries.get(key)
        if known is None:
            if len(self._geometries) >= GEOMETRIES_MAX:
                self._geometries.clear()
            # Others load this format or that; llama.cpp one.
            read = gguf_geometry if engine == "llamacpp" else read_geometry
            known = self._geometries[key] = read(path)
        return known

    def _available(self, question: _Question) -> Available:
        gpus, host = question.gpus, question.host
        mask = question.estimated.devices
        rooms = {name: room for name in mask if (room := _room(name, gpus)) is not None}
        taken: dict[str, int] = {}
        for estimate in tuple(self._held.values()):  # a hold may end meanwhile
            for place, demand in estimate.places():
                key = place if place == HOST else _identity(place, gpus)
                taken[key] = taken.get(key, 0) + demand.total_bytes
        return Available(
            {
                name: _less(room, taken.get(_identity(name, gpus), 0))
                for name, room in rooms.items()
            },
            None if host is None else _less(host, taken.get(HOST, 0)),
            question.pool.memory.headroom_ratio,
        )


def _prove_alike(pool: PoolSettings, mask: tuple[str, ...], gpus: HostGpus) -> None:
    """Raises `LaunchRefused` where devices that are declared homogeneous are not."""
    if not gpus.devices:
        return
    if pool.tensor_split is None and pool.homogeneous and len(mask) > 1:
        kinds = {name: _kind(name, gpus) for name in mask}
        first, *others = kinds.items()
        for other in others:
            if not _alike(first[1], other[1]):
                raise LaunchRefused(
                    f"pools[{pool.id}].homogeneous is true, but GPU {first[0]} is "
                    f"{_kind_text(first[1])} and GPU {other[0]} is {_kind_text(other[1])}; "
                    "give tensor_split, one ratio per device (ORCH-3012)"
                )


def _kind(name: str, gpus: HostGpus) -> tuple[str, int | None]:
    """What a device is: its GPU's name and its memory."""
    place = device_of(name, gpus)
    assert place is not None, "the mask was resolved"
    device, instance = place
    return device.name, (device if instance is None else instance).memory_total_bytes


def _alike(one: tuple[str, int | None], other: tuple[str, int | None]) -> bool:
    sizes = (one[1], other[1])
    if one[0] != other[0]:
        return False
    if sizes[0] is None or sizes[1] is None:
        return True  # what is not known proves nothing
    return abs(sizes[0] - sizes[1]) <= ALIKE_RATIO * max(sizes[0], sizes[1])


def _kind_text(kind: tuple[str, int | None]) -> str:
    name, size_bytes = kind
    return f"{name or 'a nameless one'} with " + (
        "unknown memory" if size_bytes is None else f"{size_bytes // MIB} MiB"
    )


def _room(name: str, gpus: HostGpus) -> Room | None:
    place = device_of(name, gpus)
    if place is None:
        return None
    device, instance = place
    if instance is None:
        total, free = device.memory_total_bytes, device.memory_free_bytes
    else:
        total, used = instance.memory_total_bytes, instance.memory_used_bytes
        free = None if total is None or used is None else total - used
    return None if total is None or free is None else Room(free, total)


def _identity(name: str, gpus: HostGpus) -> str:
    """One word for a device, however a mask names it."""
    place = device_of(name, gpus)
    if place is None:
        return name
    device, instance = place
    return (device.uuid or str(device.index)) if instance is None else instance.uuid


def _less(room: Room, taken_bytes: int) -> Room:
    return replace(room, free_bytes=max(0, room.free_bytes - taken_bytes))
