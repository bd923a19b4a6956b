"""The states that the pacts name, made real: a queue that is full, an engine that is gone.

One service process with one pool for each kind of trouble, so that no state disturbs another and
one start serves all interactions. Everything is done as a client, an operator or a fault would do
it: over HTTP, to the engines, to the file system. Invariant: `tidy` leaves no task and no fault
behind, and a state that cannot be reached fails the interaction that asked for it.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from consumer_pacts.data_plane import task
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer
from harness_kit.service_process import ALL_KEY, ServiceProcess, external_pool, model_of
from harness_kit.waiting import wait_until

WAIT_S = 20.0
IDLE_MS = 400
# So slow that what is used up stays used up as long as a test may take.
SELDOM_RPS = 0.001
LAUNCHED_ENGINE = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}"]


def full_pool(policy: str) -> dict[str, Any]:
    return {"queue": {"capacity": 1, "full_policy": policy}}


POOLS: dict[str, dict[str, Any]] = {
    "open": {},
    "orders": {},
    "measured": {},
    "loading": {},
    "lost": {},
    "full-reject": full_pool("reject"),
    "full-drop-lru": full_pool("drop-lru"),
    "full-shed-low-priority": full_pool("shed-low-priority"),
    "impatient": {"timeouts": {"wall_ms": 60_000, "idle_ms": IDLE_MS}},
    "rate": {
        "admission": {
            "priorities": [
                {"name": "interactive", "queue_capacity": 9, "rate_limit_rps": SELDOM_RPS}
            ]
        }
    },
    "quota": {
        "admission": {"fairness": {"kind": "wfq", "tenants": [{"id": "acme", "rps": SELDOM_RPS}]}}
    },
}
WITHOUT_EXTERNAL_ENGINES: tuple[dict[str, Any], ...] = (
    {"id": "managed", "managed": True},
    {"id": "launched", "launch": {"count": 1, "command": LAUNCHED_ENGINE}},
)


@contextmanager
def provider(directory: Path) -> Iterator[Provider]:
    """The running service with all its pools, those that are to be Ready being so."""
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(GatedEngine(slots=1, embeddings=name == "open"))
            for name in POOLS
        }
        engines["loading"].loading = True
        pools = [
            external_pool(engines[name].url, pool_id=name, model=model_of(name), **settings)
            for name, settings in POOLS.items()
        ]
        for settings in WITHOUT_EXTERNAL_ENGINES:
            pool = external_pool(pool_id=settings["id"], model=model_of(settings["id"]))
            del pool["replicas"]
            pools.append(pool | {"ctx": 4096} | settings)
        sessions = {"budgets": {"tokens": 4000}}
        service = ServiceProcess(directory, *pools, sessions=sessions)
        stack.enter_context(service)
        # One cannot be Ready, one has nobody who runs it.
        service.wait_metric("replica_ready", len(POOLS), WAIT_S)
        yield Provider(service, engines)


class Provider:
    """The service, its engines, and a client that has used it before the consumer comes."""

    def __init__(self, service: ServiceProcess, engines: dict[str, GatedEngine]) -> None:
        self.service = service
        self._engines = engines
        self._undo: list[Callable[[], object]] = []

    def set(self, state: str, action: str, parameters: dict[str, Any]) -> None:
        """What the verifier calls around each interaction. Raises KeyError for an unknown state."""
        if action == "setup":
            STATES[state](self, parameters.get("id", ""))
        else:
            self.tidy()

    def tidy(self) -> None:
        """Take back what the state has done; the latest first."""
        while self._undo:
            self._undo.pop()()

    # --- what states are made of --------------------------------------------------------------

    def nothing(self, _about: str) -> None:
        """The state in which `provider` hands the service out."""

    def admit(self, pool: str, task_id: str, **fields: Any) -> None:
        """The caller's task of that id is admitted; see `data_plane.task`."""
        answer = self._submit(pool, task_id, **fields)
        assert answer.status == 202, answer

    def finish(self, pool: str, task_id: str, **fields: Any) -> None:
        """A task of that id has ended."""
        self.admit(pool, task_id, **fields)
        self._read(task_id)

    def occupy(self, pool: str, tokens: int = 0, **fields: Any) -> None:
        """A task holds the pool's only slot until `tidy`, which waits for all tasks' ends."""
        self.hold(pool, tokens)
        self.admit(pool, self._another(), **fields)
        self._engines[pool].wait_busy(1)

    def hold(self, pool: str, tokens: int = 0) -> None:
        """Its engine stops after that many tokens of a task, until `tidy`."""
        self._undo.append(lambda: self._release(pool))
        self._engines[pool].hold(tokens)

    def order(self, method: str, path: str, body: Any = None) -> Any:
        """What an operator orders, and has to be allowed to."""
        with self.service.probe(ALL_KEY) as probe:
            content = None if body is None else json.dumps(body).encode()
            answer = probe.request(method, path, content, {"Content-Type": "application/json"})
        assert 200 <= answer.status < 300, answer
        return answer.json()

    def health(self, pool: str) -> Any:
        """The pool's health as an operator sees it."""
        return self.order("GET", f"/v1/pools/{pool}/health")

    # --- states -------------------------------------------------------------------------------

    def runs(self, task_id: str) -> None:
        self.hold("open", 1)
        self.admit("open", task_id)
        self._engines["open"].wait_busy(1)

    def waits(self, task_id: str) -> None:
        self.occupy("full-reject")
        self.admit("full-reject", task_id)

    def full(self, pool: str) -> None:
        self.occupy(pool)
        self.admit(pool, self._another())

    def starts_when_read(self, task_id: str) -> None:
        self.occupy("open")
        self.admit("open", task_id)

        def let_go_once_read() -> None:
            self.service.wait_metric("stream_readers", 1, WAIT_S)
            self._engines["open"].allow()

        waiting = threading.Thread(target=let_go_once_read, daemon=True)
        waiting.start()
        self._undo.append(lambda: waiting.join(WAIT_S))

    def canceled(self, task_id: str) -> None:
        self.occupy("open")
        self.admit("open", task_id)
        with self.service.probe() as probe:
            assert probe.post(f"/v1/tasks/{task_id}/cancel").status == 204

    def dropped(self, task_id: str) -> None:
        self.occupy("full-drop-lru")
        self.admit("full-drop-lru", task_id)
        self.admit("full-drop-lru", self._another())

    def too_late(self, task_id: str) -> None:
        self.occupy("full-reject")
        self.admit("full-reject", task_id, deadline_ms=100)
        self._read(task_id)

    def silent(self, task_id: str) -> None:
        self.hold("impatient", 1)
        self.finish("impatient", task_id)

    def reset(self, task_id: str) -> None:
        engine = self._engines["open"]
        self.hold("open", 1)
        self.admit("open", task_id, determinism="best_effort")
        with self.service.probe() as probe:
            stream = probe.stream(task_id)
            stream.until("token")
            engine.break_decodes()
            stream.rest()
        wait_until(lambda: bool(self.health("open")["ready"]), WAIT_S, "the pool is Ready again")

    def rate_used_up(self, pool: str) -> None:
        self.finish(pool, self._another())

    def speed_known(self, _about: str) -> None:
        for _ in range(3):
            self.finish("measured", self._another())

    def engine_gone(self, _about: str) -> None:
        engine = self._engines["lost"]
        engine.crash()

        def back() -> None:
            engine.listen()
            wait_until(lambda: bool(self.health("lost")["ready"]), WAIT_S, "lost is Ready again")

        self._undo.append(back)
        wait_until(lambda: not self.health("lost")["ready"], WAIT_S, "the loss is noticed")

    def unwritable(self, _about: str) -> None:
        """The journal has no room: no file of the service may grow any more."""
        pid = self.service.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)

        def room_again() -> None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            # What the journal could not write before comes first, and may fail once more.
            wait_until(
                lambda: self._submit("open", self._another()).status == 202, WAIT_S, "it writes"
            )

        self._undo.append(room_again)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))

    def session(self, session_id: str) -> None:
        self.admit("open", self._another(), session_id=session_id)

    def embedding(self, task_id: str) -> None:
        self.finish("open", task_id, prompt=None, workload="embedding", inputs=["a", "b"])

    def cordoned(self, pool: str) -> None:
        self.order("POST", f"/v1/pools/{pool}/cordon", {"replica_id": "r0"})

    def canary(self, pool: str) -> None:
        self.settled(pool)
        body = {"new_model_ref": model_of("next"), "canary_percent": 50}
        self.order("POST", f"/v1/pools/{pool}/reload", body)
        wait_until(
            lambda: self.health(pool)["reload"]["phase"] == "canary", WAIT_S, "the canary waits"
        )

    def settled(self, pool: str) -> None:
        """The pool serves all that ask for it, on all its replicas."""
        if pool == "orders":
            self.order("POST", f"/v1/pools/{pool}/resume", {})
        ends = ("idle", "done", "rolled_back")

        def ready() -> bool:
            health = self.health(pool)
            return (
                bool(health["ready"]) and health.get("reload", {"phase": "idle"})["phase"] in ends
            )

        wait_until(ready, WAIT_S, f"pool {pool} is Ready")

    def manager(self, name: str) -> None:
        body = {"lease_ms": 60_000, "epoch": "first", "replicas": []}
        self.order("PUT", f"/v1/pool-managers/{name}", body)

    def file_changed(self, _about: str) -> None:
        self._rewrite(streams={"retain_s": 700})

    def file_broken(self, _about: str) -> None:
        self._rewrite(streams={"retain": 700})

    def reloaded(self, _about: str) -> None:
        self._rewrite(streams={"retain_s": 700})
        self.order("POST", "/v1/config/reload", {})

    # --- the client's side --------------------------------------------------------------------

    def _rewrite(self, **sections: Any) -> None:
        path, before = self.service.config_path, self.service.config_path.read_bytes()
        self._undo.append(lambda: path.write_bytes(before))
        path.write_text(yaml.safe_dump(self.service.config | sections), encoding="utf-8")

    def _submit(self, pool: str, task_id: str, **fields: Any) -> Answer:
        body = {name: v for name, v in task(pool, task_id, **fields).items() if v is not None}
        with self.service.probe() as probe:
            return probe.post("/v1/tasks", body)

    def _read(self, task_id: str) -> None:
        with self.service.probe() as probe:
            assert probe.stream(task_id).rest()[-1].terminal

    def _release(self, pool: str) -> None:
        self._engines[pool].allow()
        wait_until(lambda: idle(self.service, pool), WAIT_S, f"pool {pool} is idle")

    @staticmethod
    def _another() -> str:
        """The id of a task that no interaction speaks of."""
        return str(uuid.uuid4())


STATES: dict[str, Callable[[Provider, str], None]] = {
    "": Provider.nothing,
    "the service is ready": Provider.nothing,
    "the pool open is ready": Provider.nothing,
    "nothing of that id exists": Provider.nothing,
    "the key has no role but metrics": Provider.nothing,
    "the engine of the pool loading has not loaded its model": Provider.nothing,
    "the task was admitted": lambda p, about: p.admit("open", about),
    "the task runs": Provider.runs,
    "the task has ended": lambda p, about: p.finish("open", about),
    "the embedding has ended": Provider.embedding,
    "the task waits in the pool full-reject": Provider.waits,
    "the task starts once its stream is read": Provider.starts_when_read,
    "the task was canceled while it waited": Provider.canceled,
    "the task was dropped for a newer one": Provider.dropped,
    "the deadline of the task passed while it waited": Provider.too_late,
    "the engine of the task went silent after one token": Provider.silent,
    "the worker of the task was lost after one token": Provider.reset,
    "the queue of the pool is full": Provider.full,
    "the queue of the pool is full of more urgent tasks": Provider.full,
    "the caller has used up its rate": Provider.rate_used_up,
    "the speed of the pool measured is known": Provider.speed_known,
    "the last engine of the pool lost is gone": Provider.engine_gone,
    "the journal cannot be written": Provider.unwritable,
    "the session exists": Provider.session,
    "the pool is ready": Provider.settled,
    "a replica of the pool is cordoned": Provider.cordoned,
    "a canary of the pool waits for a decision": Provider.canary,
    "the pool manager is registered": Provider.manager,
    "the configuration file has another streams.retain_s": Provider.file_changed,
    "the configuration file has a key that does not exist": Provider.file_broken,
    "another streams.retain_s was reloaded": Provider.reloaded,
}


def idle(service: ServiceProcess, pool: str) -> bool:
    """Whether no task waits or runs in the pool."""
    return not any(service.metric(name, pool_id=pool) for name in ("queue_depth", "tasks_running"))
