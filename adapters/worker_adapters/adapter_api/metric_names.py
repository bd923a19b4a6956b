"""Our names for the figures engines export about themselves.

`EngineClient.metrics()` answers with these keys only, whatever the engine calls them, so that
pool health, placement and dashboards read one vocabulary. Counters end in `_total`, gauges carry
their unit. Requirements: ORCH-3054, OC-ADAPT-5001.
"""

from __future__ import annotations

from typing import Final

REQUESTS_RUNNING: Final = "requests_running"  # gauge: decodes that hold a slot
REQUESTS_WAITING: Final = "requests_waiting"  # gauge: requests the engine itself queues
KV_CACHE_USAGE_RATIO: Final = "kv_cache_usage_ratio"  # gauge, 0..1: KV cells in use
PROMPT_TOKENS_TOTAL: Final = "prompt_tokens_total"  # counter: prefilled tokens
PROMPT_TOKENS_CACHED_TOTAL: Final = "prompt_tokens_cached_total"  # counter: reused instead
GENERATED_TOKENS_TOTAL: Final = "generated_tokens_total"  # counter
PREFILL_SECONDS_TOTAL: Final = "prefill_seconds_total"  # counter
DECODE_SECONDS_TOTAL: Final = "decode_seconds_total"  # counter
PREFILL_TOKENS_PER_S: Final = "prefill_tokens_per_s"  # gauge: the engine's own average
DECODE_TOKENS_PER_S: Final = "decode_tokens_per_s"  # gauge: the engine's own average

ALL: Final = frozenset(
    {
        REQUESTS_RUNNING,
        REQUESTS_WAITING,
        KV_CACHE_USAGE_RATIO,
        PROMPT_TOKENS_TOTAL,
        PROMPT_TOKENS_CACHED_TOTAL,
        GENERATED_TOKENS_TOTAL,
        PREFILL_SECONDS_TOTAL,
        DECODE_SECONDS_TOTAL,
        PREFILL_TOKENS_PER_S,
        DECODE_TOKENS_PER_S,
    }
)
