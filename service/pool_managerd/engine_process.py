"""One launched engine: a process in a session of its own, its output, and its end.

Invariants: the exit is noticed by the kernel's own event (pidfd), not by polling; after `stop`
or `sweep` no process of this engine is left, not even one that left its process group; nobody
else's process is ever signalled. Requirements: ORCH-3001, OC-POOL-3010.

Not asyncio's subprocess: its exit event waits for the output pipe, which a grandchild may hold
open, and it differs between event loops.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pool_managerd.engine_output import EngineOutput
from pool_managerd.processes import kill_carriers

READ_BYTES = 64 * 1024


class EngineProcess:
    """A running engine. Start and use it from the event loop's thread: the engine dies with that
    thread (see `parent_death`)."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        marker: str,
        output: EngineOutput,
        on_exit: Callable[[], None],
    ) -> None:
        """Start it. Raises OSError where the program cannot be run."""
        self._loop = asyncio.get_running_loop()
        self._marker = marker
        self._output = output
        self._on_exit = on_exit
        self.exited = asyncio.Event()
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        output.begin()
        os.set_blocking(reader, False)
        self._reader = reader
        self._loop.add_reader(reader, self._read)
        self._exit_event = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._exit_event, self._exit)

    @property
    def pid(self) -> int:
        """The engine's pid, which is also its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def status(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "still runs"
        if code >= 0:
            return f"exited with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"was ended by {name}"

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to its group, SIGKILL after `grace_s` seconds; returns when nothing is left."""
        self._signal(signal.SIGTERM)
        # A stopped process (SIGSTOP) takes no SIGTERM before it goes on.
        self._signal(signal.SIGCONT)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.exited.wait()
        self._signal(signal.SIGKILL)
        await self.exited.wait()
        await self.sweep()

    async def sweep(self) -> None:
        """End what the engine itself left behind, and its output; after its exit."""
        # It looks at every process of the host: other replicas' tokens shall not wait for that.
        await asyncio.to_thread(kill_carriers, self._marker)
        self._read()
        if self._reader != -1:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1

    def _signal(self, number: signal.Signals) -> None:
        # Not reaped yet means that the number still belongs to it and its group.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _read(self) -> None:
        if self._reader == -1:
            return
        try:
            output = os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return
        if output:
            self._output.write(output)
        else:
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1

    def _exit(self) -> None:
        # It is not reaped yet, so the number is still that of its group. Workers that rename
        # themselves (vLLM's) overwrite the environment that /proc shows, and with it the marker.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.poll() is None:
            return
        self._loop.remove_reader(self._exit_event)
        os.close(self._exit_event)
        self._read()  # its last words
        self.exited.set()
        self._on_exit()
