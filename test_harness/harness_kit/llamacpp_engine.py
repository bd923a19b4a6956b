"""A real llama.cpp server for tests: SmolLM2 under the product's own launcher, as a process.

`with LlamaCppEngine() as engine: … engine.url`. Needs the packages of the `engine` extra and the
model package; without them the tests that use it fail, they are not skipped.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from harness_kit.engine_process import START_S, EngineProcess
from pool_managerd.llamacpp_launcher import arguments_of
from pool_managerd.model_files import find_model

MODEL = "builtin:smollm2"
LAUNCHER = "pool_managerd.llamacpp_launcher"


class LlamaCppEngine(EngineProcess):
    """One server process. `ctx` is per slot; `extra` are further options of the launcher."""

    def __init__(self, *, ctx: int = 1024, parallel: int = 2, extra: tuple[str, ...] = ()) -> None:
        options = ("--model", MODEL, "--ctx", str(ctx), "--parallel", str(parallel), *extra)
        super().__init__(LAUNCHER, options)

    @property
    def model_path(self) -> Path:
        """The model file that the server loads."""
        return find_model(MODEL).path

    def settings(self) -> dict[str, Any]:
        """What decides over its bytes, as the running process shows it: its command line, /props,
        and how many tokens of prompts it did not read because they were in a slot's cache."""
        words = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        options = arguments_of(words[words.index(LAUNCHER) + 1 :])
        figures = self._get("/metrics").decode().splitlines()
        cached = [
            line for line in figures if line.startswith("llamacpp:prompt_tokens_cached_total")
        ]
        return {
            "total_slots": json.loads(self._get("/props"))["total_slots"],
            "cont_batching": not options.no_cont_batching,
            "threads": options.threads,
            "model": options.model,
            "prompt_tokens_cached": int(cached[0].split()[1]),
        }

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=START_S) as answer:
            content: bytes = answer.read()
        return content
