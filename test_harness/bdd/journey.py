"""What one scenario's people do and see: who asked for what, what they were told, what they read.

Steps (`bdd.steps`) are thin sentences over this. A task is known by its name, which is also its
prompt, so that an engine's record says who ran when. Invariants: people see the service over HTTP
only; the engines' own record is the independent witness of order and shares.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bdd.stage import PATIENCE_S, Scenery, Stage, Wanted, model_of
from harness_kit.gated_engine import DecodeSeen, GatedEngine
from harness_kit.http_probe import Answer, Event, EventStream, HttpProbe, task
from harness_kit.service_process import ALL_KEY, DATA_KEY, OTHER_TENANT_KEY, ServiceProcess
from harness_kit.waiting import wait_until

# Two tenants, and a second client of the first one.
KEYS = {"acme": DATA_KEY, "acme's colleague": ALL_KEY, "zeta": OTHER_TENANT_KEY}
BYSTANDER = "zeta"  # whose tasks take the slots


@dataclass(slots=True)
class Asked:
    """One task: who asked for it and the latest answer; `events` once it was read to its end."""

    who: str
    pool: str
    document: dict[str, Any]
    answer: Answer
    answered_at_s: float
    events: list[Event] = field(default_factory=list)

    @property
    def task_id(self) -> str:
        return str(self.document["task_id"])


class Journey:
    """One scenario: configure first, then act; the service starts with the first action."""

    def __init__(self, stage: Stage) -> None:
        self.wanted = Wanted()
        self.asked: dict[str, Asked] = {}
        self._stage = stage
        self._scenery: Scenery | None = None
        self._seen_before: dict[tuple[str, str], int] = {}
        self._seen_at_crash: dict[tuple[str, str], int] = {}
        self._sessions: dict[str, str] = {}
        self._probes: dict[str, HttpProbe] = {}
        self._dead: list[GatedEngine] = []
        self._open = ExitStack()

    def close(self) -> None:
        """End all connections and leave the stage tidy."""
        self._open.close()
        for probe in self._probes.values():
            probe.close()
        for engine in self._dead:
            engine.listen()
        if self._scenery is not None:
            self._stage.tidy()

    # --- the stage -----------------------------------------------------------------------------

    @property
    def service(self) -> ServiceProcess:
        return self._set().service

    def engines(self, pool: str) -> dict[str, GatedEngine]:
        """The pool's engines by replica id."""
        return self._set().engines[pool]

    def engine(self, pool: str) -> GatedEngine:
        """The only engine of a pool."""
        (engine,) = self.engines(pool).values()
        return engine

    def decodes(self, pool: str, replica: str, *, since_crash: bool = False) -> list[DecodeSeen]:
        """What that engine was asked for in this scenario, or since the service died."""
        engine = self.engines(pool)[replica]
        seen_before = self._seen_at_crash if since_crash else self._seen_before
        return engine.decodes[seen_before[pool, replica] :]

    def kill_engine(self, pool: str, replica: str) -> None:
        """Its port closes, its connections break; it is back for the next scenario."""
        engine = self.engines(pool)[replica]
        engine.crash()
        self._dead.append(engine)
        self.service.wait_metric("replica_ready", 0, PATIENCE_S, pool_id=pool, replica_id=replica)

    def crash_and_restart(self) -> None:
        """kill -9 and a start on the same state; the engines live on."""
        self._open.close()
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()
        self.service.kill()
        self._seen_at_crash = self._count_decodes()
        self.service.restart()

    def _set(self) -> Scenery:
        if self._scenery is None:
            self._scenery = self._stage.set(self.wanted)
            self._seen_before = self._count_decodes()
        return self._scenery

    def _count_decodes(self) -> dict[tuple[str, str], int]:
        assert self._scenery is not None
        return {
            (pool, replica): len(engine.decodes)
            for pool, replicas in self._scenery.engines.items()
            for replica, engine in replicas.items()
        }

    # --- what people do ------------------------------------------------------------------------

    def probe(self, who: str) -> HttpProbe:
        """The kept-alive connection of that person."""
        if who not in self._probes:
            self._probes[who] = self.service.probe(KEYS[who])
        return self._probes[who]

    def session_id(self, session: str) -> str:
        """The id behind a session's name."""
        return self._sessions.setdefault(session, str(uuid.uuid4()))

    def submit(self, who: str, pool: str, name: str, **fields: Any) -> Asked:
        """POST a task; its name is its prompt."""
        assert name not in self.asked, f"there is a task {name!r} already"
        document = task(model_of(pool), **({"prompt": name} | fields))
        answer = self.probe(who).post("/v1/tasks", document)
        self.asked[name] = Asked(who, pool, document, answer, time.monotonic())
        return self.asked[name]

    def ask_again(self, name: str) -> Answer:
        """POST the very same document again."""
        asked = self.asked[name]
        asked.answer = self.probe(asked.who).post("/v1/tasks", asked.document)
        asked.answered_at_s = time.monotonic()
        return asked.answer

    def ask_until_admitted(self, name: str) -> None:
        """Ask again and again; from the time on that the refusal had named it must succeed."""
        asked = self.asked[name]
        told_at_s = asked.answered_at_s + asked.answer.json()["retry_after_ms"] / 1000

        def admitted() -> bool:
            sent_at_s = time.monotonic()
            if self.ask_again(name).status == 202:
                return True
            assert sent_at_s < told_at_s, f"came back when told, and: {asked.answer}"
            return False

        wait_until(admitted, told_at_s - time.monotonic() + PATIENCE_S, f"{name} is admitted")

    def take_slots(self, pool: str) -> None:
        """Every slot of the pool is held by a task that does not move."""
        engines = self.engines(pool)
        for engine in engines.values():
            engine.hold()
        slots = self.wanted.pools[pool].slots * len(engines)
        for number in range(slots):
            answer = self.submit(BYSTANDER, pool, f"bystander {number}").answer
            assert answer.status == 202, answer
        wait_until(
            lambda: sum(engine.busy for engine in engines.values()) == slots,
            PATIENCE_S,
            f"all slots of {pool} are taken",
        )

    def stream(self, name: str) -> EventStream:
        """Open the task's stream on a connection of its own."""
        asked = self.asked[name]
        probe = self._open.enter_context(self.service.probe(KEYS[asked.who]))
        return probe.stream(asked.task_id)

    def read(self, name: str) -> list[Event]:
        """All events of the task, once it has ended."""
        asked = self.asked[name]
        if not asked.events:
            stream = self.probe(asked.who).stream(asked.task_id)
            assert stream.status == 200, stream.answer()
            asked.events = stream.rest()
            assert stream.complete, f"the stream of {name} broke off"
        return asked.events

    def read_all(self) -> None:
        """Wait for the end of everything that was admitted."""
        for name, asked in self.asked.items():
            if asked.answer.status == 202:
                self.read(name)

    # --- what the engines saw ------------------------------------------------------------------

    def ran(self, pool: str, *, since_crash: bool = False) -> list[str]:
        """Names in the order in which the pool's only engine took them up for the first time."""
        (replica,) = self.engines(pool)
        seen = self.decodes(pool, replica, since_crash=since_crash)
        prompts = [decode.body["prompt"] for decode in seen]
        return list(dict.fromkeys(p for p in prompts if not p.startswith("bystander ")))

    def names(self, group: str) -> list[str]:
        """The tasks `group 1`, `group 2` and so on, as they were submitted."""
        found = [name for name in self.asked if name.rpartition(" ")[0] == group]
        assert found, f"no task belongs to {group!r}"
        return found

    def contested(self, pool: str, groups: tuple[str, ...]) -> Iterator[str]:
        """What ran, in order, while each of the groups still had a task waiting."""
        waiting = {group: set(self.names(group)) for group in groups}
        for name in self.ran(pool):
            for names in waiting.values():
                names.discard(name)
            if not all(waiting.values()):
                return
            yield name

    def wait_ran(self, name: str, replica: str) -> None:
        """Wait until that replica was asked for the task."""
        pool = self.asked[name].pool
        wait_until(
            lambda: name in [seen.body["prompt"] for seen in self.decodes(pool, replica)],
            PATIENCE_S,
            f"{name} runs on {replica}",
        )
