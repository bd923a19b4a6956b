"""Runs the tests of the core against mutants of it: which of them does a test notice?

    python -m mutation.mutation_run            all of them, and survivors.yaml anew
    python -m mutation.mutation_run --sample   the share that `make test` looks at

Each mutant is a forked process of one that has imported pytest and everything else that does not
change; in it the mutated module stands in for the real one, and the tests run until the first
fails. Nothing is written into the tree. Invariant: the one thread of this process forks, at most
`jobs` children at a time, and a child leaves by `os._exit` whatever happens in it. A mutant that
needs more than `LIMIT_S` of processor time or `LIMIT_BYTES` of memory is noticed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
import yaml

from harness_kit.report_files import report_file
from mutation.operators import Mutant, mutants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SERVICE = ROOT / "service"
SURVIVORS = HERE / "survivors.yaml"
LIMIT_S = 20
LIMIT_BYTES = 4 << 30
# One mutant of so many, by the hash of its name, is looked at in every run of the suite.
SAMPLE = 64

# The queue, fairness and deadline modules, each with the tests that know it best, which run first.
TARGETS = {
    "orchestrator_core.queueing.flow": ("test_flow.py",),
    "orchestrator_core.queueing.ranked_list": ("test_ranked_list.py",),
    "orchestrator_core.queueing.share": ("test_share.py",),
    "orchestrator_core.queueing.wfq": ("test_wfq.py",),
    "orchestrator_core.queueing.pool_queue": ("test_pool_queue.py",),
    "orchestrator_core.admission.victim": ("test_victim.py",),
    "orchestrator_core.admission.rate_limit": ("test_rate_limit.py",),
    "orchestrator_core.admission.tenant_quotas": ("test_tenant_quotas.py",),
    "orchestrator_core.on_time": ("test_on_time.py",),
}
UNIT = ROOT / "test_harness" / "unit" / "orchestrator_core"
# After a module's own tests; the slowest last.
OTHER_TESTS = (
    UNIT,
    ROOT / "test_harness/property/test_queue_order.py",
    ROOT / "test_harness/property/test_shares.py",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mutant of one module, or the module as it is."""

    module: str
    mutant: Mutant | None

    @property
    def name(self) -> str:
        change = "unchanged" if self.mutant is None else self.mutant.name
        return f"{self.module.removeprefix('orchestrator_core.')} {change}"

    @property
    def sampled(self) -> bool:
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4]) % SAMPLE == 0


class _Stand(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutated module to whoever imports the real one."""

    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self._candidate.module:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin="mutant")

    def exec_module(self, module: ModuleType) -> None:
        mutant = self._candidate.mutant
        tree = mutant.tree() if mutant is not None else ast.parse(source_of(module.__name__))
        exec(compile(tree, "mutant", "exec"), module.__dict__)


def candidates() -> Iterator[Candidate]:
    """Every mutant of every target."""
    for module in TARGETS:
        for mutant in mutants(source_of(module)):
            yield Candidate(module, mutant)


def source_of(module: str) -> str:
    """The code of a target."""
    return (SERVICE / (module.replace(".", "/") + ".py")).read_text("utf-8")


def surviving(chosen: Iterable[Candidate], jobs: int) -> Iterator[tuple[Candidate, bool]]:
    """Each candidate with whether no test notices it, as they come to an end; `jobs` at a time."""
    running: dict[int, Candidate] = {}
    for candidate in chosen:
        if len(running) >= jobs:
            yield _ended(running)
        running[_fork(candidate)] = candidate
    while running:
        yield _ended(running)


def controls(modules: Iterable[str]) -> Iterator[Candidate]:
    """Each module as it is: what a run finds says nothing where a test notices that."""
    for module in modules:
        yield Candidate(module, None)


def _ended(running: dict[int, Candidate]) -> tuple[Candidate, bool]:
    pid, status = os.wait()
    return running.pop(pid), status == 0


def _fork(candidate: Candidate) -> int:
    pid = os.fork()
    if pid:
        return pid
    outcome = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        outcome = _tested(candidate)
    finally:
        os._exit(outcome)


def _tested(candidate: Candidate) -> int:
    import pytest

    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.meta_path.insert(0, _Stand(candidate))
    own = [str(UNIT / name) for name in TARGETS[candidate.module]]
    unneeded = ("cacheprovider", "randomly", "harness_kit.validated_responses")
    quiet = ["-x", "-q", *(f"-pno:{name}" for name in unneeded)]
    for tests in (own, [str(each) for each in OTHER_TESTS]):
        arguments = [
            *quiet,
            "-o",
            "timeout=0",
            "-o",
            "filterwarnings=default",
            "--hypothesis-seed=0",
            *tests,
        ]
        if pytest.main(arguments) not in (pytest.ExitCode.OK,):
            return 1
    return 0


def known_survivors() -> dict[str, str]:
    """Name of each survivor -> why no test can or need notice it."""
    if not SURVIVORS.exists():
        return {}
    document = yaml.safe_load(SURVIVORS.read_text("utf-8")) or {}
    return {name: reason for reason, names in document.items() for name in names}


def write_survivors(names: Iterable[str]) -> None:
    """Remember who survived; new ones stand without a reason, which the tests refuse."""
    reasons = known_survivors()
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(reasons.get(name, "not explained yet"), []).append(name)
    SURVIVORS.write_text(
        "# Mutants of the queue, fairness and deadline modules that no test notices, by reason.\n"
        "# Written by `make mutation`, reasons by hand.\n"
        + yaml.safe_dump(groups, sort_keys=False, width=10_000),
        "utf-8",
    )


def _preload() -> None:
    """Import what every forked test run needs and no mutant changes."""
    for name in ("hypothesis.strategies", "msgspec", "pytest", "yaml"):
        importlib.import_module(name)
    assert not TARGETS.keys() & sys.modules.keys(), "a module that is there is never mutated"


def main(
    sample: Annotated[
        bool, typer.Option("--sample", help=f"One mutant of {SAMPLE}; writes nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Mutants at a time.")] = os.cpu_count() or 1,
) -> None:
    """Count which mutants the tests notice; exit 1 where one survives that is not known to."""
    _preload()
    for control, passes in surviving(controls(list(TARGETS)[:1] if sample else TARGETS), jobs):
        if not passes:
            typer.echo(f"{control.module} fails its tests as it is", err=True)
            raise typer.Exit(2)
    chosen = [each for each in candidates() if each.sampled or not sample]
    counts: dict[str, Counter[str]] = {module: Counter() for module in TARGETS}
    survivors = []
    for number, (candidate, survived) in enumerate(surviving(chosen, jobs), 1):
        counts[candidate.module]["survived" if survived else "noticed"] += 1
        if survived:
            survivors.append(candidate.name)
            typer.echo(f"survives: {candidate.name}")
        if number % 50 == 0:
            typer.echo(f"{number} of {len(chosen)}", err=True)
    noticed = sum(of["noticed"] for of in counts.values())
    typer.echo(f"{noticed} of {len(chosen)} noticed, {noticed / len(chosen):.1%}")
    name = "mutation/sample.json" if sample else "mutation/all.json"
    report_file(name).write_text(
        json.dumps({"modules": counts, "survivors": survivors}, indent=1) + "\n", "utf-8"
    )
    unknown = set(survivors) - known_survivors().keys()
    if not sample:
        write_survivors(survivors)
    if unknown:
        typer.echo(f"{len(unknown)} survivors are not in {SURVIVORS.name}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
