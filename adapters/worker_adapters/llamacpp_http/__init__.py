"""llama.cpp's HTTP server as an engine (entry point `llamacpp`)."""

from __future__ import annotations

from worker_adapters.adapter_api.types import EngineAdapter
from worker_adapters.llamacpp_http.client import LlamaCppAdapter

ADAPTER: EngineAdapter = LlamaCppAdapter()

__all__ = ["ADAPTER", "LlamaCppAdapter"]
