"""The fake engine as a process, to be killed and stopped as a real one is."""

from __future__ import annotations

from harness_kit.engine_process import EngineProcess


class FakeEngineProcess(EngineProcess):
    """`with FakeEngineProcess("--slots", "4") as engine`; the options are those of the module."""

    def __init__(self, *options: str) -> None:
        super().__init__("harness_kit.fake_engine", options)
