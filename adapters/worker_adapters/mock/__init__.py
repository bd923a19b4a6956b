"""A scripted engine inside the process (entry point `mock`), for tests and simulations."""

from __future__ import annotations

from worker_adapters.adapter_api.types import EngineAdapter
from worker_adapters.mock.client import MockAdapter
from worker_adapters.mock.engine import MockEngine
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

ADAPTER: EngineAdapter = MockAdapter()

__all__ = ["ADAPTER", "Misbehaviour", "MockAdapter", "MockEngine", "MockFault", "MockScript"]
