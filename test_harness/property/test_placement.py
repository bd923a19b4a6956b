"""Placement against oracles that look at everything each time, and its bounds under any traffic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.core_builders import SET_KEY, T0_MS, make_pool, make_replica, make_task, picked
from orchestrator_core.effects import Admitted, Dispatch, Effect, Ended, Moved, Rejected
from orchestrator_core.events import (
    Finished,
    PoolAdded,
    ReplicaLost,
    ReplicaReady,
    Submit,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.placement.anti_affinity import TenantSpread
from orchestrator_core.placement.free_slots import FreeSlots
from orchestrator_core.placement.pick import Wish
from orchestrator_core.placement.prefix_tree import PrefixTree
from orchestrator_core.placement.score import saved_ratio, score
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.sessions.resident_kv import ResidentKv
from orchestrator_core.task import Determinism

# A prompt is a few blocks of few texts, so that beginnings are often shared.
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


def blocks_of(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Chain hashes without collisions: the beginning itself, read as a number in base 4."""
    hashes, value = [], 0
    for text in prompt:
        value = value * 4 + text + 1
        hashes.append(value)
    return tuple(hashes)


class NaiveTree:
    """Every beginning as a tuple with the time of its last use; evicts the oldest leaf."""

    def __init__(self, nodes_max: int) -> None:
        self.nodes_max = nodes_max
        self.used: dict[tuple[int, ...], int] = {}
        self.now = 0

    def remember(self, prompt: tuple[int, ...]) -> None:
        self.now += 1
        for depth in range(1, min(len(prompt), self.nodes_max) + 1):
            self.used[prompt[:depth]] = self.now
        while len(self.used) > self.nodes_max:
            parents = {path[:-1] for path in self.used}
            leaves = [path for path in self.used if path not in parents]
            del self.used[min(leaves, key=lambda leaf: self.used[leaf])]

    def held(self, prompt: tuple[int, ...]) -> int:
        depths = range(1, len(prompt) + 1)
        return sum(prompt[:depth] in self.used for depth in depths)


@pytest.mark.req("ORCH-3205")
@given(
    nodes_max=st.integers(1, 12),
    reads=st.lists(prompts, max_size=20),
    asked=st.lists(prompts, min_size=1, max_size=5),
)
def test_a_prefix_tree_is_bounded_and_finds_what_a_naive_tree_finds(
    nodes_max: int, reads: list[tuple[int, ...]], asked: list[tuple[int, ...]]
) -> None:
    tree, naive = PrefixTree(nodes_max), NaiveTree(nodes_max)

    for prompt in reads:
        tree.remember(blocks_of(prompt))
        naive.remember(prompt)
        assert len(tree) == len(naive.used) <= nodes_max
        assert [tree.held(blocks_of(p)) for p in asked] == [naive.held(p) for p in asked]


@dataclass
class Holder:
    key: str
    kv_bytes: int = 0

    def lose_kv(self) -> None:
        self.kv_bytes = 0


@pytest.mark.req("ORCH-3022")
@given(
    bytes_max=st.integers(0, 30),
    uses=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.booleans()), max_size=40),
)
def test_resident_kv_is_bounded_and_adds_up_whatever_is_held_and_dropped(
    bytes_max: int, uses: list[tuple[int, int, bool]]
) -> None:
    kv = ResidentKv(bytes_max)
    holders = [Holder(str(number)) for number in range(5)]

    for number, kv_bytes, drop in uses:
        holder = holders[number]
        if drop:
            kv.drop(holder.key)
            holder.kv_bytes = 0
        else:
            holder.kv_bytes = kv_bytes if kv_bytes <= bytes_max else 0
            kv.hold(holder, kv_bytes)
        assert kv.bytes_used == sum(known.kv_bytes for known in holders) <= bytes_max
        assert len(kv) == sum(known.kv_bytes > 0 for known in holders)


GROUPS = [
    ReplicaSet(version, replace(SET_KEY, engine_version=version), Limits())
    for version in ("b1", "b2")
]
TASK = make_task(
    determinism=Determinism.BEST_EFFORT,
    prompt_tokens=400,
    cost_tokens=410,
    prefix_blocks=blocks_of((0, 1, 2, 0)),
)


@st.composite
def fleets(draw: st.DrawFn) -> list[Replica]:
    fleet = []
    for number in range(draw(st.integers(0, 6))):
        labels = {
            label: draw(st.sampled_from(("", "1", "2"))) for label in ("node", "zone", "numa")
        }
        spec = replace(
            make_replica(f"r{number}", slots=draw(st.integers(1, 3))),
            labels=tuple((name, value) for name, value in labels.items() if value),
        )
        made = Replica(spec, draw(st.sampled_from(GROUPS)), epoch=1)
        made.ready = draw(st.booleans())
        made.leased = draw(st.integers(0, spec.slots_total))
        made.prefixes.remember(blocks_of(draw(prompts)))
        fleet.append(made)
    return fleet


@pytest.mark.req("ORCH-3008", "ORCH-3010", "ORCH-3013", "ORCH-3046", "ORCH-3205", "OC-CORE-1010")
@given(
    fleet=fleets(),
    group=st.sampled_from([None, *GROUPS]),
    preferred=st.integers(0, 8),
    avoid=st.integers(0, 8),
    labels=st.sampled_from([None, ("node",), ("zone", "node")]),
    running=st.lists(st.integers(0, 5), max_size=6),
    reuse=st.booleans(),
)
def test_what_is_picked_is_usable_and_what_an_exhaustive_search_picks(
    fleet: list[Replica],
    group: ReplicaSet | None,
    preferred: int,
    avoid: int,
    labels: tuple[str, ...] | None,
    running: list[int],
    reuse: bool,
) -> None:
    by_number = dict(enumerate(fleet))
    last, died = by_number.get(preferred), by_number.get(avoid)
    spread = None if labels is None else TenantSpread(labels)
    runs_on = [by_number[number] for number in running if number in by_number]
    if spread is not None:
        for replica in runs_on:
            spread.count(TASK.tenant, replica, +1)

    found = picked(fleet, group, last, died, Wish(TASK, spread, reuse, fleet))

    choice = [r for r in fleet if r.ready and r.leased < r.spec.slots_total]
    choice = [r for r in choice if group is None or r.group is group]
    choice = [r for r in choice if r is not died] or choice
    for label in labels or ():
        crowd = {r: sum(o.label(label) == r.label(label) for o in runs_on) for r in choice}
        choice = [r for r in choice if crowd[r] == min(crowd.values())]
    if not choice:
        assert found is None
        return
    assert found in choice
    scores = {r: score(r, last, saved_ratio(r, TASK) if reuse else 0.0) for r in choice}
    choice = [r for r in choice if scores[r] == max(scores.values())]

    def numa_leased(one: Replica) -> int:
        if not one.label("numa"):
            return one.leased
        place = (one.label("node"), one.label("numa"))
        return sum(o.leased for o in fleet if (o.label("node"), o.label("numa")) == place)

    noise = {r: (numa_leased(r), r.leased) for r in choice}  # nobody has a pcie label
    assert found is min(choice, key=lambda r: (*noise[r], r.spec.id))


POOLS = ("p", "q")
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("xy"), prompts),
        st.tuples(st.just("finish"), st.integers(0, 9), st.none()),
        st.tuples(st.just("lose"), st.sampled_from(POOLS), st.integers(0, 3)),
        st.tuples(
            st.just("ready"),
            st.sampled_from(POOLS),
            st.tuples(st.integers(0, 3), st.sampled_from(("b1", "b2")), st.sampled_from("mn")),
        ),
    ),
    max_size=40,
)


class Books:
    """What may be true of placement, kept from the outside."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(Limits(session_max_turns=10**6))
        self.ready: set[tuple[str, str]] = set()
        self.known: dict[tuple[str, str], tuple[str, str]] = {}  # version, node; also while lost
        self.pool_of: dict[str, str] = {}
        self.tenant_of: dict[str, str] = {}
        self.runs_on: dict[str, tuple[str, str]] = {}
        for pool_id in POOLS:
            spec = make_pool(
                pool_id, anti_affinity=("node",), prefix_reuse=frozenset({Determinism.BEST_EFFORT})
            )
            self.scheduler.step(PoolAdded(spec), T0_MS)

    def book(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Admitted(task_key, pool_id) | Moved(task_key, pool_id):
                    self.pool_of[task_key] = pool_id
                case Dispatch(task_key, pool_id, replica_id):
                    self.check_dispatch(task_key, (pool_id, replica_id))
                    self.runs_on[task_key] = (pool_id, replica_id)
                case Rejected() | Ended():
                    pass
                case _:
                    raise AssertionError(effect)

    def check_dispatch(self, key: str, where: tuple[str, str]) -> None:
        pool_id, _ = where
        # Admitted may come in the same step, but never names another pool's mask.
        assert self.pool_of.setdefault(key, pool_id) == pool_id, "left its device mask"
        assert where in self.ready, "not Ready"
        leased = Counter(self.runs_on.values())
        assert leased[where] < SLOTS, "no free slot"
        version, node = self.known[where]
        running_versions = {self.known[w][0] for w in self.runs_on.values() if w[0] == pool_id}
        assert running_versions <= {version}, "mixes versions"
        nodes = Counter(
            self.known[w][1]
            for other, w in self.runs_on.items()
            if w[0] == pool_id and self.tenant_of[other] == self.tenant_of[key]
        )
        eligible = {
            self.known[w][1]
            for w in self.ready
            if w[0] == pool_id and self.known[w][0] == version and leased[w] < SLOTS
        }
        assert nodes[node] == min(nodes[at] for at in eligible), "crowds a node"


SLOTS = 2


@pytest.mark.req(
    "ORCH-3008", "ORCH-3010", "ORCH-3011", "ORCH-3046", "ORCH-3205", "OC-CORE-1010", "OC-CORE-1011"
)
@given(actions=actions)
def test_no_task_is_placed_outside_ready_replicas_of_its_pool_and_one_version(
    actions: list[tuple[str, object, object]],
) -> None:
    books = Books()
    scheduler = books.scheduler
    for number, action in enumerate(actions):
        match action:
            case ("submit", str(tenant), tuple(prompt)):
                task = make_task(
                    f"t{number}",
                    tenant=tenant,
                    determinism=Determinism.BEST_EFFORT,
                    prefix_blocks=blocks_of(prompt),
                    prompt_tokens=64 * len(prompt),
                    cost_tokens=64 * len(prompt) + 5,
                )
                books.tenant_of[task.key] = tenant
                books.book(scheduler.step(Submit(task), T0_MS))
            case ("finish", int(position), _) if books.runs_on:
                key = sorted(books.runs_on)[position % len(books.runs_on)]
                del books.runs_on[key]
                books.book(scheduler.step(Finished(key, 64, 5, 64, 100), T0_MS))
            case ("lose", str(pool_id), int(replica)):
                where = (pool_id, f"r{replica}")
                if where in books.ready:
                    books.ready.remove(where)
                    books.book(scheduler.step(ReplicaLost(*where), T0_MS))
                    for key in sorted(k for k, w in books.runs_on.items() if w == where):
                        del books.runs_on[key]
                        books.book(scheduler.step(WorkerLost(key, resume=True), T0_MS))
            case ("ready", str(pool_id), (int(replica), str(version), str(node))):
                where = (pool_id, f"r{replica}")
                if where not in books.ready:
                    books.ready.add(where)
                    books.known[where] = (version, node)
                    spec = replace(
                        make_replica(where[1], pool_id, slots=SLOTS, version=version),
                        labels=(("node", node),),
                    )
                    books.book(scheduler.step(ReplicaReady(spec), T0_MS))
            case _:
                pass


@pytest.mark.req("OC-CORE-1010", "OC-CORE-1012", partial="load and affinity")
@given(
    slots=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 5)), max_size=60),
)
def test_the_roomiest_replica_is_the_one_that_a_look_at_all_picks(
    slots: list[int], moves: list[tuple[bool, int, int]]
) -> None:
    group = ReplicaSet("set", SET_KEY, Limits())
    replicas = [
        Replica(make_replica(f"r{number}", slots=total), group, 0)
        for number, total in enumerate(slots)
    ]
    stranger = Replica(make_replica("z", slots=100), group, 0)
    free = FreeSlots(replicas)

    for leases, at, wanted in moves:
        replica = [*replicas, stranger][at % (len(replicas) + 1)]
        if leases and replica.slots_free:
            free.acquire(replica)
        elif not leases and replica.leased:
            free.release(replica)
        preferred = [*replicas, None][wanted % (len(replicas) + 1)]

        assert free.total == sum(r.slots_free for r in replicas)
        assert free.roomiest(preferred) is picked(replicas, None, preferred)
