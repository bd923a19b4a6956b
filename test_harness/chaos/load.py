"""Open-loop load: tasks arrive by a seeded Poisson process, however the service is doing.

A closed loop would stop asking while the service stands still and so hide what a fault does
(coordinated omission). The same seed gives the same tasks in the same order; moments are the
machine's. Invariant: every journey that has begun ends before `Load` does.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from chaos.history import TaskHistory
from chaos.journeys import PATIENCE_S, Client, Journey
from harness_kit.http_probe import task
from harness_kit.service_process import DATA_KEY, OTHER_TENANT_KEY
from worker_adapters.adapter_api.types import Sampling
from worker_adapters.mock.script import answer_of

ARRIVALS_PER_S = 12.0
# Enough for everything that can wait: both queues, all slots, and clients who ask again.
CLIENTS = 256
TENANTS = (("acme", DATA_KEY), ("zeta", OTHER_TENANT_KEY))
SAMPLING = Sampling(temperature=0.9, top_p=0.95, top_k=40)
TURNS = 6
DEADLINE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task whose text is known beforehand: measured on an engine that nobody disturbs."""

    model_ref: str
    fields: dict[str, Any]
    text: str


def fake_text(document: dict[str, Any]) -> str:
    """What a fake engine says to a task with `SAMPLING`, computed beside it."""
    pieces = answer_of(document["prompt"], document["seed"], SAMPLING, document["max_tokens"])
    return "".join(pieces.pieces)


class Journeys:
    """The seeded sequence of journeys to `models` of fake engines and, now and then, `prompts`."""

    def __init__(self, seed: str, models: Sequence[str], prompts: Sequence[Prompt] = ()) -> None:
        self._random = random.Random(seed)
        self._models = models
        self._prompts = prompts
        self._session = ""
        self._turns = TURNS

    def next(self) -> Journey:
        """One more client."""
        rng = self._random
        tenant, key = rng.choice(TENANTS)
        fields: dict[str, Any] = {
            "task_id": self._id(),
            "session_id": self._session_of(tenant),
            "priority": rng.choice(("interactive", "interactive", "batch")),
            "determinism": rng.choice(("strict", "strict", "best_effort")),
            "deadline_ms": DEADLINE_MS,
        }
        if self._prompts and rng.random() < 0.08:
            prompt = rng.choice(self._prompts)
            document, expected = task(prompt.model_ref, **fields | prompt.fields), prompt.text
        else:
            document = task(
                rng.choice(self._models),
                **fields,
                prompt=f"story {rng.randrange(1000)} of the river",
                seed=rng.getrandbits(31),
                max_tokens=rng.randint(4, 60),
                sampling={"temperature": 0.9, "top_p": 0.95, "top_k": 40},
            )
            expected = fake_text(document)
        most = document["max_tokens"]
        return Journey(
            document,
            tenant,
            key,
            expected,
            posts_twice=rng.random() < 0.2,
            vanishes_after=rng.randint(1, most) if rng.random() < 0.3 else None,
            cancels_after=rng.randint(0, most) if rng.random() < 0.15 else None,
            reads_again=rng.random() < 0.2,
        )

    def pause_s(self) -> float:
        """Seconds to the next arrival."""
        return self._random.expovariate(ARRIVALS_PER_S)

    def _id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _session_of(self, tenant: str) -> str:
        """A session of up to `TURNS` tasks; an id belongs to its tenant, so both may use it."""
        if self._turns >= TURNS:
            self._session, self._turns = self._id(), 0
        self._turns += 1
        return self._session


class Load:
    """`with Load(journeys, port) as load`: tasks arrive; the end of the block waits for all."""

    def __init__(self, journeys: Journeys, port: Callable[[], int]) -> None:
        self._journeys = journeys
        self._port = port
        self._over = threading.Event()
        self._clients = ThreadPoolExecutor(CLIENTS)
        self._begun: list[Future[TaskHistory]] = []
        self._arrivals = threading.Thread(target=self._arrive)

    def __enter__(self) -> Self:
        self._arrivals.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._arrivals.join()
        self._clients.shutdown(cancel_futures=error is not None)

    def send(self, journey: Journey) -> TaskHistory:
        """One client; its history, which it goes on writing."""
        client = Client(journey, self._port)
        self._begun.append(self._clients.submit(client.go))
        return client.history

    @property
    def begun(self) -> int:
        """How many clients have begun."""
        return len(self._begun)

    def histories(self) -> list[TaskHistory]:
        """Of all clients; waits for them."""
        return [future.result(PATIENCE_S) for future in self._begun]

    def _arrive(self) -> None:
        due_s = time.monotonic()
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            self.send(self._journeys.next())
            due_s += self._journeys.pause_s()
