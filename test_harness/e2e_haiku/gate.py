"""The anti-cheat gate: a real model writes a poem that nobody could have written before.

It drives OrchQueue v1 through the generated client and reads `/metrics`, as any user could. A run
is accepted only when the text holds the minute and the nonce, `tokens_out_total` grew by the text's
tokens between two scrapes, and the task's record names the engine version and the model digest that
the real engine package and model file of this host have. It cannot see through a worker that reads
the prompt and lies about both; the test of the gate looks into the engine's process for that.
Invariant: one poem for the minute, and one more only where the minute flipped; nothing else is
tried again. Requirements: OC-E2E-9001, OC-E2E-9002, OC-E2E-9003.
"""

from __future__ import annotations

import os
import random
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from e2e_haiku.poem import Assignment, minute_of
from harness_kit.service_process import metric_in
from orchqueue_v1.client import OrchError, OrchQueueClient
from orchqueue_v1.sse import EndEvent, TokenEvent
from orchqueue_v1.types import SamplingParams, TaskRequest
from pool_managerd.llamacpp_launcher import ENGINE_DISTRIBUTION
from pool_managerd.model_files import SMOLLM2, SMOLLM2_SHA256

REAL_VARIABLE = "REQUIRE_REAL_LLAMA"
SOURCES = Path(__file__).parents[2]
# Not written by people; a running service keeps the prompt in its own state directory.
_NOT_SOURCES = {"build", "dist", "node_modules", "__pycache__"}
POEM_MS = 30_000
SCRAPE_S = 5.0
# Three short lines; a poem that is longer has missed its end.
TOKENS_MAX = 48
CTX_TOKENS = 1024
SAMPLING = SamplingParams(temperature=0.2, top_p=0.95, top_k=40)


class Rule(StrEnum):
    """Why a run is refused."""

    NOT_REQUIRED = "REQUIRE_REAL_LLAMA is not 1"
    NO_METRICS = "/metrics"
    NO_ANSWER = "no answer"
    NOT_THE_POEM = "not the poem"
    NO_TOKENS_COUNTED = "tokens_out_total"
    NOT_THE_REAL_WORKER = "engine_version and model_digest"
    IN_A_SOURCE = "a source line holds both strings"
    TOO_LATE = "not within 30 s"


class Refused(Exception):
    """The gate's verdict on a run that is no proof; `rule` says which of its rules."""

    def __init__(self, rule: Rule, said: str) -> None:
        super().__init__(f"{rule}: {said}")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Target:
    """The service under proof. `metrics_url` is where it is scraped."""

    url: str
    data_key: str
    metrics_url: str
    metrics_key: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The proof: what was asked, what came, and who wrote it; `tries` is 2 after a flip."""

    minute: str
    nonce: str
    text: str
    tokens_out: int
    engine_version: str
    model_digest: str
    elapsed_s: float
    tries: int


def real_worker() -> tuple[str, str]:
    """Engine version and model digest that the real engine and model of this host have."""
    version = metadata.version(ENGINE_DISTRIBUTION)
    return f"llama.cpp {ENGINE_DISTRIBUTION}-{version}", f"sha256:{SMOLLM2_SHA256}"


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate; beside `target` and `environment`, the world as it is unless a test invents one."""

    target: Target
    environment: Mapping[str, str]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    draw: random.Random = field(default_factory=random.SystemRandom)
    sources: Path = SOURCES
    worker: tuple[str, str] = field(default_factory=real_worker)

    def run(self) -> Accepted:
        """One run with its verdict.

        Raises:
            Refused: a rule is broken; see `Rule`.
        """
        if self.environment.get(REAL_VARIABLE) != "1":
            raise Refused(Rule.NOT_REQUIRED, "the gate is for a real engine only")
        asked = self.now()
        try:
            accepted = self._poem(asked, tries=1)
        except Refused as refused:
            if refused.rule is not Rule.NOT_THE_POEM or not self._flipped(asked):
                raise
        else:
            if not self._flipped(asked):
                return accepted
        return self._poem(self.now(), tries=2)

    def _flipped(self, asked: datetime) -> bool:
        return minute_of(asked) != minute_of(self.now())

    def _poem(self, asked: datetime, *, tries: int) -> Accepted:
        assignment = Assignment.at(asked, self.draw)
        self._search_sources(assignment)
        before = self._tokens_out()
        began = self.now()  # searching the sources is the gate's own time
        text, tokens_out, worker = self._ask(assignment)
        elapsed_s = (self.now() - began).total_seconds()
        grown = self._tokens_out() - before
        fault = assignment.fault_of(text)
        if elapsed_s * 1000 > POEM_MS:
            raise Refused(Rule.TOO_LATE, f"it took {elapsed_s:.1f} s")
        if fault is not None:
            wanted = f"{assignment.minute!r} and {assignment.nonce!r}"
            raise Refused(Rule.NOT_THE_POEM, f"{fault}; asked for {wanted}, got {text!r}")
        if grown < tokens_out:
            raise Refused(Rule.NO_TOKENS_COUNTED, f"grew by {grown:g}, the poem has {tokens_out}")
        if worker != self.worker:
            raise Refused(Rule.NOT_THE_REAL_WORKER, f"the record names {worker}")
        self._search_sources(assignment)
        minute, nonce = assignment.minute, assignment.nonce
        return Accepted(minute, nonce, text, tokens_out, *worker, elapsed_s, tries)

    def _ask(self, assignment: Assignment) -> tuple[str, int, tuple[str, str]]:
        """The poem, its tokens, and (engine version, model digest) as the service shows them."""
        task_id = str(uuid.uuid4())
        request = TaskRequest(
            task_id=task_id,
            session_id=str(uuid.uuid4()),
            workload="completion",
            model_ref=SMOLLM2,
            engine="llamacpp",
            ctx=CTX_TOKENS,
            priority="interactive",
            max_tokens=TOKENS_MAX,
            deadline_ms=POEM_MS,
            sampling=SAMPLING,
            messages=assignment.messages(self.draw),
        )
        pieces, tokens_out = list[str](), 0
        try:
            with OrchQueueClient(self.target.url, self.target.data_key) as client:
                client.submit_task(request)
                for event in client.stream_task(task_id):
                    if isinstance(event, TokenEvent):
                        pieces.append(event.data.t)
                    elif isinstance(event, EndEvent):
                        tokens_out = event.data.tokens_out
                record = client.get_determinism(task_id)
        except OrchError as error:
            raise Refused(Rule.NO_ANSWER, str(error)) from error
        return "".join(pieces), tokens_out, (record.engine_version, record.model_digest)

    def _tokens_out(self) -> float:
        request = urllib.request.Request(
            self.target.metrics_url, headers={"X-API-Key": self.target.metrics_key}
        )
        try:
            with urllib.request.urlopen(request, timeout=SCRAPE_S) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(Rule.NO_METRICS, str(error)) from None
        except (OSError, ValueError) as error:
            raise Refused(Rule.NO_METRICS, str(error)) from error
        if "# TYPE tokens_out_total counter" not in text:
            raise Refused(Rule.NO_METRICS, "there is no counter tokens_out_total")
        return metric_in(text, "tokens_out_total")

    def _search_sources(self, assignment: Assignment) -> None:
        minute, nonce = assignment.minute.encode(), assignment.nonce.encode()
        for path in source_files(self.sources):
            content = path.read_bytes()
            if nonce not in content:
                continue
            for number, line in enumerate(content.splitlines(), 1):
                if nonce in line and minute in line:
                    raise Refused(Rule.IN_A_SOURCE, f"{path}:{number}")


def source_files(root: Path) -> Iterator[Path]:
    """Every file below `root` that people wrote: neither hidden nor built."""
    for folder, folders, names in os.walk(root):
        folders[:] = [n for n in folders if not n.startswith(".") and n not in _NOT_SOURCES]
        yield from (Path(folder, name) for name in names if Path(folder, name).is_file())
