"""`llama-orch simulate`: what a fleet would do under a load, decided by the service's own core.

Talks to no service: the configuration gives pools, classes, tenants and sessions, the options what
a configuration cannot know (how many slots, how fast, what arrives). Invariant: the same options
print the same result; only the cost of decisions is measured, and only when asked for. (ORCH-3075,
ORCH-3079, ORCH-3081)
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output
from orch_cli.profiles import JsonOption

if TYPE_CHECKING:
    from orch_simulator.workload import Arrival

_TRACE_LINE = (
    '{"at_ms": 0, "tenant": "acme", "priority": "batch", "prompt_tokens": 128, "max_tokens": 256, '
    '"deadline_ms": 60000}'
)

# Generations of the garbage collector as the service sets them: a queue of a million tasks is no
# garbage, and looking at it again and again is no part of a decision.
_GC_THRESHOLDS = (50_000, 20, 50)


def simulate(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="LLAMA_ORCH_CONFIG",
            metavar="FILE",
            help="Pools, classes, tenants and sessions; without it one plain pool.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", metavar="FILE", help="Recorded arrivals, a JSON object a line, by at_ms."
        ),
    ] = None,
    poisson: Annotated[
        bool, typer.Option("--poisson", help="Generated arrivals, a Poisson process each.")
    ] = False,
    tasks: Annotated[
        int, typer.Option("--tasks", metavar="N", min=1, help="Poisson: tasks in all.")
    ] = 10_000,
    rate: Annotated[
        float, typer.Option("--rate", metavar="R", help="Poisson: tasks a second in all.")
    ] = 10.0,
    tenants: Annotated[
        int | None,
        typer.Option(
            "--tenants",
            metavar="N",
            min=1,
            help="Poisson: how many; the configured come first. Default: the configured, else 2.",
        ),
    ] = None,
    tenant_skew: Annotated[
        float,
        typer.Option(
            "--tenant-skew", metavar="S", min=0, help="Poisson: Zipf exponent; 0 is even."
        ),
    ] = 0.0,
    mix: Annotated[
        str,
        typer.Option("--priority-mix", metavar="MIX", help="Poisson: relative rates."),
    ] = "interactive=1,batch=4",
    deadlines: Annotated[
        str,
        typer.Option(
            "--deadlines", metavar="RANGES", help="Poisson: seconds from arrival, least:most."
        ),
    ] = "interactive=5:60,batch=60:3600",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", min=1, help="Poisson: median.")
    ] = 256,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", metavar="N", min=1, help="Poisson: median.")
    ] = 128,
    save_trace: Annotated[
        Path | None,
        typer.Option("--save-trace", metavar="FILE", help="Write the arrivals as a trace, too."),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            metavar="N",
            min=1,
            help="Of each pool. Default: as configured, at least 1.",
        ),
    ] = None,
    slots: Annotated[int, typer.Option("--slots", metavar="N", min=1, help="Of each replica.")] = 4,
    queue_capacity: Annotated[
        int | None,
        typer.Option(
            "--queue-capacity",
            metavar="N",
            min=1,
            help="Of each pool and class. Default: as configured; without --config no bound.",
        ),
    ] = None,
    prefill_ms: Annotated[
        float, typer.Option("--prefill-ms", metavar="T", min=0, help="A prompt token.")
    ] = 0.25,
    decode_ms: Annotated[
        float, typer.Option("--decode-ms", metavar="T", min=0, help="A decoded token.")
    ] = 20.0,
    jitter: Annotated[
        float,
        typer.Option("--jitter", metavar="R", min=0, help="Standard deviation over mean of both."),
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of everything drawn.")] = 0,
    cost: Annotated[
        bool, typer.Option("--cost", help="Also measure the real time and memory of decisions.")
    ] = False,
    probe_every: Annotated[
        int,
        typer.Option(
            "--probe-every",
            metavar="N",
            min=0,
            help="Ask each Nth task for its on_time_probability; 0 asks none.",
        ),
    ] = 1,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=0, help="Rows of tenants to print.")
    ] = 20,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw two charts there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a fleet under generated or recorded load, with the service's own scheduling core.

    Prints waiting times, shares, deadlines met, refusals and preemptions per tenant and priority,
    how true on_time_probability was, and a plot. Equal options give equal results.

    Examples:

    llama-orch simulate --config llama-orch.yaml --poisson --rate 12 --tasks 20000 --plot load.svg

    llama-orch simulate --config llama-orch.yaml --trace monday.jsonl --replicas 3 --json

    llama-orch simulate --poisson --tasks 100000 --rate 100000 --decode-ms 1 --cost --probe-every 0
    --deadlines interactive=36000:72000,batch=36000:72000
    """
    output = Output.of_process(as_json=as_json)
    if poisson == (trace is not None):
        raise CliError(
            "exactly one of --poisson and --trace FILE is needed",
            hint="`llama-orch simulate --poisson --tasks 1000` is a first run",
        )
    if rate <= 0:
        raise CliError(f"--rate {rate:g}: must be above 0")
    try:
        from orch_simulator.decision_cost import DecisionMeter
        from orch_simulator.engine_model import EngineModel
        from orch_simulator.simulation import Simulation
    except ModuleNotFoundError as error:
        if error.name != "simpy":
            raise
        raise CliError(
            "the simulator needs the package simpy, which is not installed",
            hint="pip install 'llama-orch[simulator]'",
        ) from None
    from orch_cli.simulated_fleet import deadline_ranges, fleet, priority_mix, tenant_names
    from orch_simulator import report
    from orch_simulator.svg_chart import outcome_svg
    from orch_simulator.trace import TraceError, read_trace, write_trace
    from orch_simulator.workload import Lengths, PoissonWorkload

    pools, limits, warnings = fleet(config, replicas, slots, queue_capacity)
    for warning in warnings:
        output.note(f"warning: {warning}", "yellow")
    # Two generators: a change of what arrives does not change how long the others take.
    arrivals_random, service_random = Random(f"{seed}/arrivals"), Random(f"{seed}/service")
    total: int | None = None
    if trace is None:
        workload = PoissonWorkload(
            tasks=tasks,
            rate_per_s=rate,
            tenants=tenant_names(pools, tenants),
            tenant_skew=tenant_skew,
            priority_mix=priority_mix(mix),
            deadlines=deadline_ranges(deadlines),
            prompt=Lengths(prompt_tokens, 0.8, 16 * prompt_tokens),
            output=Lengths(output_tokens, 0.7, 16 * output_tokens),
            ctx_tokens=min(pool.spec.ctx for pool in pools),
            model_refs=tuple(sorted({min(pool.spec.model_refs) for pool in pools})),
        )
        arrivals: Iterator[Arrival] = workload.arrivals(arrivals_random)
        total = tasks
    else:
        arrivals = read_trace(trace)
    if save_trace is not None:
        arrivals = write_trace(save_trace, arrivals)
    meter = DecisionMeter(time.perf_counter_ns) if cost else None
    begun_s = time.monotonic()
    thresholds = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        with _progress(output, total) as progress:
            outcome = Simulation(
                pools,
                arrivals,
                random=service_random,
                engine=EngineModel(prefill_ms, decode_ms, jitter),
                limits=limits,
                probe_every=probe_every,
                meter=meter,
                progress=progress,
            ).run()
    except TraceError as error:
        raise CliError(str(error), hint=f"a line looks like {_TRACE_LINE}") from None
    except OSError as error:
        raise CliError(f"{error.filename}: {error.strerror}") from None
    finally:
        gc.set_threshold(*thresholds)
    took_s = time.monotonic() - begun_s
    if plot is not None:
        try:
            plot.write_text(outcome_svg(outcome), "utf-8")
        except OSError as error:
            raise CliError(
                f"{error.filename}: {error.strerror}", exit_code=ExitCode.TASK_FAILED
            ) from None
        output.note(f"plot: {plot}")
    if as_json:
        output.json(outcome)
        return
    output.note(report.headline(outcome), "bold")
    for table in report.tables(outcome, most_flows=top):
        output.table(table.title, table.columns, table.rows)
    if cost:
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        output.note(
            f"{took_s:.1f} s of real time, {outcome.steps} decisions, {peak_mib:.0f} MiB at most"
        )


@contextmanager
def _progress(output: Output, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr where a person looks at it; `total` is None where nobody knows it."""
    if output.as_json or not output.errors.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("tasks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.errors, transient=True) as shown:
        row = shown.add_task("tasks", total=total)
        yield lambda ended: shown.update(row, completed=ended)


def register(app: typer.Typer) -> None:
    """Add `simulate` to the command line."""
    app.command("simulate", epilog=EPILOG)(simulate)
