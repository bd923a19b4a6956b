"""The headers that a collector of traces asks for, as OTEL_EXPORTER_OTLP_HEADERS has them.

Read at the start only. Invariant: an error quotes no value, which may be a token.
Requirements: ORCH-2009, OC-CTRL-2041.
"""

from __future__ import annotations


def otlp_headers(text: str) -> dict[str, str]:
    """`name=value,name=value` as headers. Raises: ValueError for any other form."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(name.strip() and value.strip() for name, _, value in pairs):
        raise ValueError("must hold name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}
