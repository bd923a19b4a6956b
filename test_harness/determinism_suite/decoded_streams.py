"""Streams of the corpus as a client of OrchQueue v1 reads them, with who decoded them.

One service is asked for every entry at once and read one stream after the other. Invariant: bytes
and record come from OrchQueue v1 alone (stream, explanation, determinism record); nothing here
knows an engine. Requirements: ORCH-3045, OC-TEST-7001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from determinism_suite.corpus import Entry
from harness_kit.http_probe import task
from harness_kit.service_process import CONTROL_KEY, POOL, ServiceProcess

# The last of 64 streams waits for all others; on a machine that others use as well, minutes.
DEADLINE_MS = 1_200_000


@dataclass(frozen=True, slots=True)
class DecodedStream:
    """One stream, whole; `events` are the `token` events as they came over the wire."""

    entry: Entry
    replica_id: str
    engine_version: str
    model_digest: str
    hash_seed: str
    tokens: tuple[str, ...]
    events: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class HashSeededService:
    """A running service, and the PYTHONHASHSEED that its process has."""

    service: ServiceProcess
    hash_seed: str

    def only(self, replica_id: str, of: Sequence[str]) -> None:
        """Let `replica_id` alone take work; the others of the pool are cordoned."""
        with self.service.probe(CONTROL_KEY) as probe:
            for name in of:
                order = "resume" if name == replica_id else "cordon"
                answer = probe.post(f"/v1/pools/{POOL}/{order}", {"replica_id": name})
                assert answer.status == 202, answer

    def decode(
        self, model: str, engine: str, entries: Sequence[Entry], **fields: Any
    ) -> list[DecodedStream]:
        """Every entry's stream, in the order of `entries`; `fields` go into each task.

        Raises:
            AssertionError: a task was refused, or its stream ended with an error.
        """
        documents = [
            task(
                model,
                engine=engine,
                seed=entry.seed,
                prompt=entry.prompt,
                max_tokens=entry.tokens,
                sampling=entry.sampling,
                deadline_ms=DEADLINE_MS,
                **fields,
            )
            for entry in entries
        ]
        with self.service.probe() as probe:
            for document in documents:
                answer = probe.post("/v1/tasks", document)
                assert answer.status == 202, answer
        return [
            self._read(entry, document["task_id"])
            for entry, document in zip(entries, documents, strict=True)
        ]

    def _read(self, entry: Entry, task_id: str) -> DecodedStream:
        with self.service.probe() as probe:
            events = probe.stream(task_id).rest()
            explanation = probe.get(f"/v1/tasks/{task_id}/explanation").json()
            record = probe.get(f"/v1/tasks/{task_id}/determinism")
        assert events[-1].name == "end", events[-1]
        # Only a strict task has a record; nothing is promised of another.
        of = record.json() if record.status == 200 else {}
        tokens = [event for event in events if event.name == "token"]
        return DecodedStream(
            entry,
            explanation["replica_id"],
            of.get("engine_version", "unrecorded"),
            of.get("model_digest", "unrecorded"),
            self.hash_seed,
            tuple(event.data["t"] for event in tokens),
            tuple(event.raw for event in tokens),
        )
