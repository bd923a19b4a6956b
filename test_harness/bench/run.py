"""`make bench`: run the measures, print tables, write JSON.

Entry of the bench (`python test_harness/bench/run.py`). Peers take turns within each repetition,
in opposite order every other time, each with a fresh engine. Invariant: ends with status 1 when a
request failed or a peer did not start; a missed goal is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvloop
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import core, peers, proc, profiling, relay, report
from bench.admission import admission
from bench.load import ClosedLoop

MEASURES = ("core", "admission", "relay")
PROFILE_FRAMES = 25
LONG_QUEUE = 1_000_000  # filling it takes minutes: measured once
WORK = peers.ROOT / "build" / "bench"  # git-ignored, and on the disk of the checkout


def say(what: str) -> None:
    """Progress, beside the tables."""
    print(what, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the service costs (see bench/__init__.py).")
    parser.add_argument("--only", help=f"comma-separated measures of {', '.join(MEASURES)}")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="length of each closed-loop phase"
    )
    parser.add_argument(
        "--paced-tokens", type=int, default=100, help="tokens per stream of the paced phase"
    )
    parser.add_argument(
        "--calm",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="before each phase wait at most so long until other processes are quiet",
    )
    parser.add_argument("--without-peers", action="store_true", help="measure the service only")
    parser.add_argument("--waiting", help="comma-separated queue lengths of the core measure")
    parser.add_argument("--profile", action="store_true", help="sample the service as well")
    parser.add_argument("--json", type=Path, help="write everything measured here")
    return parser


def pace(options: argparse.Namespace) -> relay.Pace:
    """The lengths of the relay's phases."""
    return relay.Pace(options.seconds, options.paced_tokens, options.calm)


@contextlib.contextmanager
def started(name: str, work: Path) -> Iterator[peers.Target]:
    """A running peer, stopped afterwards. Raises proc.NotReady."""
    target = peers.STARTERS[name](work)
    try:
        yield target
    finally:
        target.stop()


def measure_core(results: report.Results, waiting: tuple[int, ...], reps: int) -> None:
    """The core at each queue length."""
    for length in waiting:
        for _ in range(reps if length < LONG_QUEUE else 1):
            say(f"core, {length} waiting")
            results.core.append(core.queue_cost(length))


def measure_relay(results: report.Results, options: argparse.Namespace, work: Path) -> None:
    """Every peer in every repetition."""
    names = [peers.SERVICE] if options.without_peers else list(peers.STARTERS)
    for repetition in range(options.reps):
        for name in names if repetition % 2 == 0 else reversed(names):
            say(f"relay {repetition + 1}/{options.reps}, {name}")
            try:
                with started(name, work) as target:
                    measured = relay.relay(target, repetition, pace(options))
            except (proc.NotReady, subprocess.CalledProcessError) as failed:
                results.failures.append(f"relay, {name}: {failed}")
                continue
            results.relay.append(measured)
            _note_errors(results, name, measured)


def _note_errors(results: report.Results, name: str, measured: relay.Relayed) -> None:
    for phase, found in measured.phases().items():
        if found.outcome.errors:
            results.failures.append(
                f"relay, {name}, {phase}: {found.outcome.errors} errors, "
                f"{'; '.join(found.outcome.error_samples)}"
            )


def measure_admission(results: report.Results, options: argparse.Namespace, work: Path) -> None:
    """The service alone."""
    for repetition in range(options.reps):
        say(f"admission {repetition + 1}/{options.reps}")
        try:
            with started(peers.SERVICE, work) as target:
                measured = admission(target, options.seconds, options.calm)
        except proc.NotReady as failed:
            results.failures.append(f"admission: {failed}")
            continue
        results.admission.append(measured)
        for phase in (*measured.closed.values(), measured.open):
            if phase.outcome.errors:
                results.failures.append(f"admission: {'; '.join(phase.outcome.error_samples)}")


def profile(results: report.Results, options: argparse.Namespace, work: Path) -> None:
    """Sample the service in the phases whose CPU has a goal."""
    try:
        with started(peers.SERVICE, work) as target:
            assert target.process is not None
            settings = ClosedLoop(relay.TASK_CONNECTIONS, seconds=2 * options.seconds)
            phases = {
                "task": lambda: relay.measure(target, 1, settings),
                "paced": lambda: relay.paced(target, pace(options)),
            }
            relay.measure(target, 1, settings)  # warm up
            for name, phase in phases.items():
                output = WORK / f"profile-{name}.txt"
                stacks = profiling.sampled(target.process.pid, output, phase)
                by_function = profiling.python_times(stacks)[:PROFILE_FRAMES]
                results.profile[f"{name}, by Python function with its native calls"] = by_function
                by_frame = profiling.self_times(stacks)[:PROFILE_FRAMES]
                results.profile[f"{name}, self time, native frames apart"] = by_frame
    except (proc.NotReady, subprocess.SubprocessError) as failed:
        results.failures.append(f"profile: {failed}")


def main() -> int:
    """Run what the command line asks for; the exit status."""
    options = parser().parse_args()
    only = tuple(options.only.split(",")) if options.only else MEASURES
    if unknown := set(only) - set(MEASURES):
        parser().error(f"--only: unknown measures {', '.join(sorted(unknown))}")
    waiting = tuple(map(int, options.waiting.split(","))) if options.waiting else core.WAITING
    uvloop.install()
    settings = {name: str(value) for name, value in vars(options).items()}
    results = report.Results(settings)
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=WORK) as folder:
        work = Path(folder)
        if "core" in only:
            measure_core(results, waiting, options.reps)
        if "admission" in only:
            measure_admission(results, options, work)
        if "relay" in only:
            measure_relay(results, options, work)
        if options.profile:
            profile(results, options, work)
    report.show(results, Console(width=None if sys.stdout.isatty() else 200))
    if options.json is not None:
        report.write_json(results, options.json)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
