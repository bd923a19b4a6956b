"""Runs llama.cpp's server (the PyPI build `xllamacpp`) as one replica's process:
`python -m pool_managerd.llamacpp_launcher --model builtin:smollm2 --port 9001`.

The default `launch.command`. Invariants: the model file's digest is checked before it loads
(ORCH-3037); it prints one JSON line `{"event": "listening", …}` once it serves, or
`{"event": "failed", "message": …}` and exits 1; on SIGTERM it lets running decodes end, at most
`--drain-s` seconds, and exits 0; it dies with its parent. Requirements: ORCH-3032, ORCH-3001.

The build runs on the CPU, so the pool host starts it only under `platform.cpu_carve_out`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from pool_managerd.model_files import ModelFile, ModelUnavailable, find_model, verified_digest
from pool_managerd.parent_death import die_with_parent

ENGINE_DISTRIBUTION = "xllamacpp"
# A prefill is cancelled between batches: 64 tokens take about half a second on one slow core,
# llama.cpp's own 2048 take ten. (1 as n_batch ends the process with an assertion.)
BATCH_TOKENS = 64
POLL_S = 0.05


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked; argparse exits 2 with a message otherwise."""
    parser = argparse.ArgumentParser(prog="llamacpp_launcher", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="builtin:smollm2, file:PATH[@sha256:HEX]")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_positive, required=True)
    parser.add_argument("--ctx", type=_positive, default=2048, help="tokens per slot")
    parser.add_argument("--parallel", type=_positive, default=4, help="slots")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument(
        "--strict-prefix",
        action="store_true",
        help="a warm prefix gives the bytes of a cold one; prefill runs at decode speed",
    )
    parser.add_argument(
        "--no-cont-batching", action="store_true", help="one task after the other (with 1 slot)"
    )
    parser.add_argument("--draft-model", help="decode speculatively with this small model")
    parser.add_argument(
        "--prefix-cache-mib", type=_positive, default=0, help="host memory for idle prefixes"
    )
    parser.add_argument("--embedding", action="store_true", help="offer embeddings (mean pooling)")
    parser.add_argument("--drain-s", type=float, default=5.0, help="SIGTERM waits that long")
    parser.add_argument("--parent-pid", type=int, default=None, help="default: whoever starts it")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> NoReturn:
    """Serve until SIGTERM or SIGINT."""
    parent_pid = os.getppid()
    options = arguments_of(argv)
    die_with_parent(options.parent_pid if options.parent_pid is not None else parent_pid)
    try:
        file = find_model(options.model)
        digest = verified_digest(file)
        draft = None if options.draft_model is None else find_model(options.draft_model)
        if draft is not None:
            verified_digest(draft)
        # Until here and while loading, SIGTERM ends the process at once: nothing runs yet.
        _server = _serve(options, file, draft)
    except (ModelUnavailable, ImportError, RuntimeError, ValueError) as error:
        _say(event="failed", message=str(error))
        sys.exit(1)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _say(
        event="listening",
        host=options.host,
        port=options.port,
        pid=os.getpid(),
        model_digest=digest,
    )
    stop.wait()
    _drain(options.host, options.port, options.drain_s)
    # Not sys.exit: the server's destructor would wait for decodes that outlast the drain.
    os._exit(0)


def _serve(options: argparse.Namespace, file: ModelFile, draft: ModelFile | None) -> object:
    """Load the model and listen; returns the server, which runs in threads of its own."""
    try:
        import xllamacpp
    except ImportError as error:
        raise ImportError(
            f"the engine package {ENGINE_DISTRIBUTION} cannot be imported ({error}); "
            "install it with: pip install llama-orch[engine]"
        ) from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file.path)
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.n_parallel = options.parallel
    parameters.n_ctx = options.ctx * options.parallel  # the server splits it over its slots
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.cont_batching = not options.no_cont_batching
    batch = max(BATCH_TOKENS, options.parallel)
    if options.embedding:
        # A pooled input has to fit one micro-batch.
        batch = max(batch, options.ctx)
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.n_batch = batch
    parameters.n_ubatch = 1 if options.strict_prefix else batch
    # Copies of idle slots' KV would take up to 8 GiB unasked; our placement keeps sessions on warm
    # slots.
    parameters.cache_ram_mib = options.prefix_cache_mib
    parameters.cache_idle_slots = options.prefix_cache_mib > 0
    parameters.fit_params = False  # what does not fit must fail, not shrink silently
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.endpoint_props = True
    parameters.ui = False
    # The build does not know its version; name, version and hidden settings travel as alias.
    version = metadata.version(ENGINE_DISTRIBUTION)
    settings = f"ubatch={parameters.n_ubatch}"
    if draft is not None:
        # Verifying guesses is another batch than decoding without: replicas must agree on it.
        parameters.speculative.types = [
            xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
        ]
        parameters.speculative.draft.mparams.path = str(draft.path)
        settings += f"+draft={draft.path.stem}"
    parameters.model_alias = {f"{file.path.stem}@{ENGINE_DISTRIBUTION}-{version}+{settings}"}
    return xllamacpp.Server(parameters)


def _drain(host: str, port: int, drain_s: float) -> None:
    """Wait until no slot is busy, at most `drain_s` seconds."""
    deadline = time.monotonic() + drain_s
    while time.monotonic() < deadline and _busy(host, port):
        time.sleep(POLL_S)


def _busy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/slots")
        slots = json.loads(connection.getresponse().read())
        return any(slot["is_processing"] for slot in slots)
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False  # a server that does not answer has nothing to be waited for
    finally:
        connection.close()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
