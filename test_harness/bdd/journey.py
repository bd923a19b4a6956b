"""What one scenario's people do and see: who asked for what, what they were told, what they read.

Steps (`bdd.steps`) are thin sentences over this. A task is known by its name, which is also its
prompt, so that an engine's record says who ran when. Invariants: people see the service over HTTP
only; the engines' own record is the independent witness of order and shares. What only an owner of
the service has (its process, its log, its engines) is asked for by name, and is refused elsewhere.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from bdd.stage import PATIENCE_S, AnyStage, NeedsOwnService, Scenery, Wanted
from harness_kit.gated_engine import DecodeSeen, GatedEngine
from harness_kit.http_probe import Answer, Event, EventStream, HttpProbe, ProbeError, numbered, task
from harness_kit.service_process import ServiceProcess
from harness_kit.waiting import wait_until

JSON = "application/json"
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

    def __init__(self, stage: AnyStage) -> None:
        self.wanted = Wanted()
        self.asked: dict[str, Asked] = {}
        self.last: Answer | None = None
        self.told: list[Answer] = []
        self.headers: dict[str, str] = {}
        self.metrics_before = ""
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
        self._cancel_the_rest()
        for probe in self._probes.values():
            probe.close()
        for engine in self._dead:
            engine.listen()
        if self._scenery is not None:
            self._stage.tidy()

    # --- the stage -----------------------------------------------------------------------------

    @property
    def service(self) -> ServiceProcess:
        """The process. Raises NeedsOwnService where somebody else runs it."""
        service = self._set().service
        if service is None:
            raise NeedsOwnService("the service's process belongs to somebody else")
        return service

    def engines(self, pool: str) -> dict[str, GatedEngine]:
        """The pool's engines by replica id. Raises NeedsOwnService where they are not ours."""
        engines = self._set().engines.get(pool)
        if not engines:
            raise NeedsOwnService(f"the engines of {pool} belong to somebody else")
        return engines

    def decodes_by_seed(self, pool: str) -> bool:
        """Whether the text of its tasks is known beforehand."""
        return bool(self._set().engines.get(pool))

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
        self._hang_up()
        self.service.kill()
        self._seen_at_crash = self._count_decodes()
        self.service.restart()

    def stop_and_restart(self) -> None:
        """SIGTERM, a good end, and a start on the same state."""
        self._hang_up()
        assert self.service.stop() == 0
        self.service.restart()

    def _hang_up(self) -> None:
        self._open.close()
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()

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
            self._probes[who] = self._set().connect(who)
        return self._probes[who]

    def request(self, who: str, method: str, path: str, document: Any = None) -> Answer:
        """One request; `{name}` in the path stands for that task's id, `{name.session}` for its
        session's.
        """
        for name, asked in self.asked.items():
            path = path.replace(f"{{{name}}}", asked.task_id)
            path = path.replace(f"{{{name}.session}}", str(asked.document["session_id"]))
        body = None if document is None else json.dumps(document).encode()
        headers = self.headers if body is None else self.headers | {"Content-Type": JSON}
        return self._note(self.probe(who).request(method, path, body, headers))

    def metrics(self) -> str:
        """The exposition text that the scraper gets."""
        answer = self.request("the scraper", "GET", "/metrics")
        assert answer.status == 200, f"GET /metrics: {answer.status}; has the key the role metrics?"
        return answer.body.decode()

    def _note(self, answer: Answer) -> Answer:
        self.last = answer
        self.told.append(answer)
        return answer

    def session_id(self, session: str) -> str:
        """The id behind a session's name."""
        return self._sessions.setdefault(session, str(uuid.uuid4()))

    def submit(self, who: str, pool: str, name: str, **fields: Any) -> Asked:
        """POST a task; its name is its prompt."""
        assert name not in self.asked, f"there is a task {name!r} already"
        model = self._set().models[pool]
        document = task(model.ref, **({"engine": model.engine, "prompt": name} | fields))
        answer = self.request(who, "POST", "/v1/tasks", document)
        self.asked[name] = Asked(who, pool, document, answer, time.monotonic())
        return self.asked[name]

    def ask_again(self, name: str) -> Answer:
        """POST the very same document again."""
        asked = self.asked[name]
        asked.answer = self.request(asked.who, "POST", "/v1/tasks", asked.document)
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
        probe = self._open.enter_context(self._set().connect(asked.who))
        after = asked.events[-1].id if asked.events else None
        return probe.stream(asked.task_id, after, **self.headers)

    def read_up_to(self, name: str, tokens: int) -> None:
        """Read that many tokens, from where it was left on, and lose the connection."""
        asked, stream = self.asked[name], self.stream(name)
        begun = bool(asked.events)
        read = stream.take(tokens if begun else tokens + 1)  # `started` is the first
        stream.probe.vanish()
        asked.events = numbered(asked.events + read)

    def read_on(self, name: str) -> None:
        """Read the rest, after the last event that was read."""
        asked, stream = self.asked[name], self.stream(name)
        assert stream.status == 200, stream.answer()
        asked.events += stream.rest()
        assert stream.complete, f"the stream of {name} broke off"

    def read(self, name: str) -> list[Event]:
        """All events of the task, once it has ended."""
        asked = self.asked[name]
        if not asked.events:
            stream = self.probe(asked.who).stream(asked.task_id, **self.headers)
            assert stream.status == 200, stream.answer()
            asked.events = stream.rest()
            assert stream.complete, f"the stream of {name} broke off"
        return asked.events

    def read_all(self) -> None:
        """Wait for the end of everything that was admitted."""
        for name, asked in self.asked.items():
            if asked.answer.status == 202:
                self.read(name)

    def _cancel_the_rest(self) -> None:
        """What no gate holds would decode on after the scenario."""
        for asked in self.asked.values():
            over = asked.events and asked.events[-1].terminal
            if asked.answer.status == 202 and not over and not self.decodes_by_seed(asked.pool):
                with suppress(OSError, ProbeError):  # a service that is gone is found out later
                    self.probe(asked.who).post(f"/v1/tasks/{asked.task_id}/cancel")

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
