"""One streamed /completion at a fake llama.cpp server's side (see `fake_engine`).

Events have the shape that build 11549 was seen to send. Invariant: a completion leaves its slot
exactly once, whether it ends, misbehaves or loses its client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness_kit.fake_engine_script import Fault, FaultOnce
from worker_adapters.adapter_api.types import Sampling
from worker_adapters.mock.script import answer_of, split_tokens

if TYPE_CHECKING:
    from harness_kit.fake_engine import Server, ServerConnection

TERMINATOR = b"0\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
)


def sse(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def chunk_payload(text: str, index: int, tokens_in: int, ascii_only: bool = False) -> bytes:
    """One token as llama.cpp sends it."""
    chunk = {
        "index": 0,
        "content": text,
        "tokens": [7],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": index + 1,
        "tokens_evaluated": tokens_in,
    }
    return json.dumps(chunk, separators=(",", ":"), ensure_ascii=ascii_only).encode()


class Completion:
    """One streamed /completion at the engine's side."""

    def __init__(self, connection: ServerConnection, engine: Server, asked: dict[str, Any]) -> None:
        self.connection, self.engine, self.asked = connection, engine, asked
        self.fault = engine.faults.popleft() if engine.faults else None
        self.prompt = split_tokens(asked["prompt"])
        self.slot: int | None = None
        self.given = 0
        self.prefilled = 0
        self._timer: asyncio.Handle | None = None
        self._headed = False
        self._played = 0
        script = engine.script
        self._interval_s = script.token_interval_s
        room = script.ctx_max - len(self.prompt)
        wanted = asked.get("n_predict", 16)
        sampling = Sampling(
            asked["temperature"],
            asked["top_p"],
            asked["top_k"],
            asked["min_p"],
            asked["repeat_penalty"],
            tuple(asked["stop"]),
        )
        self._answer = answer_of(
            asked["prompt"], asked["seed"], sampling, min(wanted, room), script.salt
        )
        self._truncated = room < wanted

    def begin(self, slot: int) -> None:
        self.slot = slot
        fault = self.fault
        if fault is not None and fault.after_tokens == 0:
            match fault.kind:
                case Fault.REFUSE:
                    self.connection.reply(fault.status, fault.body, close=True)
                    return self.leave()
                case Fault.NOT_HTTP:
                    self.connection.write(b"HELO this is no HTTP\r\n\r\n")
                    return self.leave()
                case Fault.SILENT:
                    return None
                case Fault.PLAY:
                    return self.play()
                case _:
                    pass
        return self.prefill()

    def prefill(self) -> None:
        script, total = self.engine.script, len(self.prompt)
        progress = {"total": total, "cache": 0, "processed": self.prefilled, "time_ms": 0}
        if self.asked.get("return_progress"):
            event = json.loads(chunk_payload("", -1, total)) | {"prompt_progress": progress}
            self.send(sse(json.dumps(event).encode()))
        if self.prefilled < total:
            self.prefilled = min(total, self.prefilled + script.prefill_batch_tokens)
            self.after(script.prefill_interval_s, self.prefill)
        else:
            self.after(self._interval_s, self.step)

    def step(self) -> None:
        events: list[bytes] = []
        script = self.engine.script
        for _ in range(script.tokens_per_write):
            if self.fault is not None and self.given >= self.fault.after_tokens:
                if events:
                    self.send(b"".join(events))
                    events = []
                if self.strike(self.fault):
                    return
            if self.given >= len(self._answer.pieces):
                self.send(b"".join(events))
                return self.finish()
            text = self._answer.pieces[self.given]
            payload = chunk_payload(text, self.given, len(self.prompt), script.ascii_only)
            events.append(sse(payload))
            self.given += 1
        self.send(b"".join(events))
        self.after(self._interval_s, self.step)

    def strike(self, fault: FaultOnce) -> bool:
        """Misbehave; True when nothing follows."""
        match fault.kind:
            case Fault.DIE:
                self.connection.abort()
            case Fault.END:
                self.connection.write(TERMINATOR)
                self.leave()
            case Fault.GARBLE:
                self.send(sse(b'{"index":0,"content":"half'))
                self.after(self._interval_s, self.finish)
            case Fault.FOREIGN:
                self.send(sse(b'{"id":"cmpl-1","choices":[]}'))
                self.after(self._interval_s, self.finish)
            case Fault.ERROR:
                self.send(sse(b'{"error":{"code":500,"message":"decode failed","type":"x"}}'))
                self.connection.write(TERMINATOR)
                self.leave()
            case Fault.HUGE:
                self.send(b"data: " + b"x" * fault.huge_bytes)
            case Fault.EXTRA:
                payload = chunk_payload(" more", self.given, len(self.prompt))
                self.send(sse(payload) * 64)
                self.after(0.001, self.step)
            case Fault.SLOW:
                self._interval_s = fault.slow_s
                return False
            case Fault.SILENT:
                pass
            case _:
                raise ValueError(f"{fault.kind} happens at the start only")
        return True

    def play(self) -> None:
        """Send the next of the scripted writes; the response ends after the last one."""
        assert self.fault is not None
        if self._played < len(self.fault.writes):
            self.send(self.fault.writes[self._played])
            self._played += 1
            if self._played < len(self.fault.writes):
                return
        self.connection.write(TERMINATOR)
        self.leave()

    def finish(self) -> None:
        tokens_in, tokens_out = len(self.prompt), self.given
        reason = "word" if self._answer.stop_reason == "stop" else "limit"
        final: dict[str, Any] = json.loads(chunk_payload("", tokens_out - 1, tokens_in)) | {
            "tokens": [],
            "stop": True,
            "id_slot": self.slot,
            "model": self.engine.script.model_alias,
            "prompt": self.asked["prompt"],
            "generation_settings": {"seed": self.asked["seed"]},
            "truncated": self._truncated and reason == "limit",
            "stop_type": reason,
            "stopping_word": "",
            "tokens_cached": tokens_in + tokens_out - 1,
            "timings": {
                "cache_n": 0,
                "prompt_n": tokens_in,
                "prompt_ms": 1.4,
                "predicted_n": tokens_out,
                "predicted_ms": 2.6,
            },
        }
        fields = self.asked.get("response_fields")
        if fields:
            final = {name: final[name] for name in fields if name in final}
        self.send(sse(json.dumps(final).encode()))
        self.connection.write(TERMINATOR)
        self.engine.completed += 1
        self.leave()

    def send(self, events: bytes) -> None:
        if not events:
            return
        if not self._headed:
            self._headed = True
            self.connection.write(STREAM_HEAD)
        self.connection.write(b"%x\r\n%b\r\n" % (len(events), events))

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        loop = self.engine.loop
        self._timer = loop.call_later(delay_s, call) if delay_s else loop.call_soon(call)

    def leave(self) -> None:
        """Free the slot; nothing more is sent."""
        if self._timer is not None:
            self._timer.cancel()
        self.connection.completion = None
        self.engine.left(self)
