"""pytest plugin: every response that a test of the harness receives is held against the contracts.

Off every request's path; loaded by the pytest configuration, hears through `response_tap`. A
response that no contract allows fails the test during which it came, and so does a path of no
contract (ORCH-2006, ORCH-2007, ORCH-2009); an error that holds a key or a prompt fails it even
where the test is exempt from the contracts (OC-CTRL-2041). Responses of one shape are judged once:
a shape is operation, status, header names, the structure of the body, its words and signs.

    @pytest.mark.unvalidated_responses("why")     this test breaks HTTP, or the paths, on purpose

Invariants: counting costs a test microseconds a response and bounded memory; a violation is told
at the end of the phase (set-up, body, tear-down) that it happened in. The session leaves
`responses/validated.json` and `responses/never_received.md` among the reports.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any

import pytest

from harness_kit import secret_scan
from harness_kit.contract_files import Operation
from harness_kit.contract_judge import (
    BESIDE,
    Mismatch,
    check_error,
    check_event,
    check_response,
    documented_statuses,
    operation_of,
)
from harness_kit.http_probe import ProbeError, parse_block
from harness_kit.report_files import report_file
from harness_kit.response_tap import EVENT_STREAM, listeners
from harness_kit.tapped_clients import tap

MARKER = "unvalidated_responses"
# Shapes with their words that are judged per operation and status; beyond them structure decides.
WORDED_SHAPES_MAX = 256
SHAPES_MAX = 1024
# Further violations of one phase say nothing new.
VIOLATIONS_MAX = 5
# A word that a schema could list; names and texts have digits or spaces.
_WORD = re.compile(r"[A-Za-z_][A-Za-z_-]{0,31}")


def shape(value: Any, *, words: bool) -> Any:
    """What a schema can judge of a JSON value: types, and with `words` words and signs."""
    match value:
        case dict():
            return tuple(sorted((key, shape(item, words=words)) for key, item in value.items()))
        case list():
            return frozenset(shape(item, words=words) for item in value)
        case str() if words and _WORD.fullmatch(value):
            return f"={value}"
        case int() | float() if words and not isinstance(value, bool):
            return f"{type(value).__name__} {'<>'[value >= 0]}"
        case _:
            return type(value).__name__


class ResponseLedger:
    """Counts what was received and judges each shape once; any thread may tell it."""

    def __init__(self) -> None:
        self.received: dict[str, Counter[int]] = {}
        self.beside: dict[str, Counter[int]] = {}
        self.events: Counter[str] = Counter()
        self.judged = 0
        self.opted_out: dict[str, str] = {}
        self.deaf = False
        self._violations: list[str] = []
        self._verdicts: dict[tuple[str, int | str], dict[Any, str | None]] = {}
        self._lock = threading.Lock()

    def hear(
        self,
        method: str,
        path: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes | None,
        sent: bytes = b"",
    ) -> None:
        """Count and judge one response; an error must not show what is nobody's to see."""
        with self._lock:
            if method == "POST" and path == "/v1/tasks":
                secret_scan.learn_prompts(sent)
            if status >= 400 and body:
                self._scan(f"{method} {path[:200]} {status}", body, sent)
            if self.deaf:
                return
            operation = operation_of(method, path)
            if operation is None:
                self._hear_beside(method, path, status, body or b"")
            else:
                self._hear_operation(operation, method, status, headers, body)

    def hear_event(self, name: str, number: int | None, data: dict[str, Any]) -> None:
        """Count and judge one event."""
        with self._lock:
            if name == "error":
                self._scan("the error of a stream", json.dumps(data).encode())
            if not self.deaf:
                self._hear_event(name, number, data)

    def _scan(self, where: str, body: bytes, sent: bytes = b"") -> None:
        try:
            secret_scan.check_error(body, where, sent)
        except secret_scan.SecretLeak as leak:
            self._violations.append(str(leak))

    def taken_violations(self) -> list[str]:
        """The violations since the last call."""
        with self._lock:
            taken, self._violations = self._violations, []
        return taken

    def never_received(self) -> list[tuple[str, int]]:
        """Documented pairs of operation and status that no response was of."""
        return [
            (operation, status)
            for operation, statuses in documented_statuses().items()
            for status in statuses
            if not self.received.get(operation, Counter())[status]
        ]

    def summary(self) -> dict[str, Any]:
        """All counts, for the report."""
        return {
            "received": sum(c.total() for c in (*self.received.values(), *self.beside.values())),
            "events": dict(sorted(self.events.items())),
            "judged": self.judged,
            "operations": _plain(self.received),
            "beside_the_contracts": _plain(self.beside),
            "never_received": [
                f"{operation} {status}" for operation, status in self.never_received()
            ],
            "not_validated": dict(sorted(self.opted_out.items())),
        }

    def _hear_operation(
        self,
        operation: Operation,
        method: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> None:
        self.received.setdefault(operation.id, Counter())[status] += 1
        document: Any = None
        if body and headers.get("content-type", "").startswith(EVENT_STREAM):
            self._hear_blocks(body)
            body = None
        elif body:
            try:
                document = json.loads(body)
            except ValueError:
                document = body[:64]
        head = (method, headers.get("content-type"), frozenset(headers), bool(body))
        self._judge(
            (operation.id, status),
            head,
            document,
            lambda: check_response(operation, method, status, headers, body or b""),
        )

    def _hear_blocks(self, body: bytes) -> None:
        for block in body.removesuffix(b"\n\n").split(b"\n\n"):
            try:
                event = parse_block(block)
            except ProbeError as error:
                self._violations.append(f"stream_task 200: {error}")
                return
            if event is not None:
                self._hear_event(event.name, event.id, event.data)

    def _hear_event(self, name: str, number: int | None, data: dict[str, Any]) -> None:
        self.events[name] += 1
        # A token's text is any text; its emptiness is what a schema judges.
        judged = data | {"t": bool(data["t"])} if data.get("t") else data
        self._judge(
            ("event", name), (number is None,), judged, lambda: check_event(name, number, data)
        )

    def _hear_beside(self, method: str, path: str, status: int, body: bytes) -> None:
        first = path.partition("?")[0].split("/")[1:2]
        where = f"{method} {path[:200]} {status}"
        if not first or first[0] not in BESIDE:
            self._violations.append(f"{where}: the path is in no contract")
            return
        self.beside.setdefault(f"{method} /{first[0]}", Counter())[status] += 1
        is_error = status >= 400 and (status, first[0]) != (503, "readyz") and method != "HEAD"
        if is_error:
            self._judge(("beside", status), (body[:256],), None, lambda: check_error(where, body))

    def _judge(
        self,
        of: tuple[str, int | str],
        head: tuple[Any, ...],
        document: Any,
        check: Callable[[], None],
    ) -> None:
        """Judge a shape that is new while there is room for it; a wrong one is wrong each time."""
        verdicts = self._verdicts.setdefault(of, {})
        key = (head, shape(document, words=len(verdicts) < WORDED_SHAPES_MAX))
        if key not in verdicts:
            if len(verdicts) >= SHAPES_MAX:
                return
            self.judged += 1
            verdicts[key] = None
            try:
                check()
            except Mismatch as mismatch:
                verdicts[key] = str(mismatch)
        if (said := verdicts[key]) is not None:
            self._violations.append(said)


class ValidatedResponses:
    """The hooks: judges while tests run, fails the one that got a wrong response, reports."""

    def __init__(self, ledger: ResponseLedger) -> None:
        self._ledger = ledger

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        marker = item.get_closest_marker(MARKER)
        self._ledger.deaf = marker is not None
        if marker is not None:
            self._ledger.opted_out[item.nodeid] = marker.args[0]
        yield from self._judged()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, None, None]:
        yield from self._judged()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, None, None]:
        yield from self._judged()
        self._ledger.deaf = False

    def _judged(self) -> Generator[None, None, None]:
        try:
            yield
        except BaseException as error:
            for violation in self._ledger.taken_violations()[:VIOLATIONS_MAX]:
                error.add_note(f"against the contract: {violation}")
            raise
        if violations := self._ledger.taken_violations():
            said = "\n".join(violations[:VIOLATIONS_MAX])
            pytest.fail(f"{len(violations)} responses that must not be:\n{said}", pytrace=False)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Raises: pytest.UsageError for a marker without a reason."""
        for item in items:
            for marker in item.iter_markers(MARKER):
                reason = marker.args[0] if len(marker.args) == 1 else None
                if marker.kwargs or not isinstance(reason, str) or not reason:
                    raise pytest.UsageError(f"{item.nodeid}: {MARKER} takes a reason, one text")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the reports, and one line, where the run received anything."""
        summary = self._ledger.summary()
        if not summary["received"]:
            return
        report_file("responses/validated.json").write_text(
            json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        missing = self._ledger.never_received()
        table = ["| operation | status |", "| --- | --- |", *(f"| {o} | {s} |" for o, s in missing)]
        report_file("responses/never_received.md").write_text(
            "Documented, and received by no test of the last run.\n\n" + "\n".join(table) + "\n",
            encoding="utf-8",
        )
        terminalreporter.write_line(
            f"responses: {summary['received']} received with {self._ledger.events.total()} events,"
            f" {summary['judged']} shapes judged, {len(missing)} documented statuses never received"
        )


def pytest_configure(config: pytest.Config) -> None:
    """Listen from now on."""
    config.addinivalue_line("markers", f"{MARKER}(reason): breaks HTTP or paths on purpose")
    ledger = ResponseLedger()
    listeners.append(ledger)
    config.add_cleanup(lambda: listeners.remove(ledger))
    monkeypatch = pytest.MonkeyPatch()
    config.add_cleanup(monkeypatch.undo)
    tap(monkeypatch)
    config.pluginmanager.register(ValidatedResponses(ledger), "validated-responses-hooks")


def _plain(counts: Mapping[str, Counter[int]]) -> dict[str, dict[str, int]]:
    return {name: {str(s): n for s, n in sorted(counts[name].items())} for name in sorted(counts)}
