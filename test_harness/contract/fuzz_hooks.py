"""Loaded by schemathesis (test_fuzz.py): steers valid tasks towards what the live service serves.

Random text is never the name of a model that exists, so nothing would ever be admitted. Invariant:
a valid value is replaced by another valid one and an invalid one is left alone, so a case stays
what it was generated as, positive or negative.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis

# What the live service of test_fuzz.py serves; the examples of the contract name the same model.
MODEL = "builtin:smollm2"
ENGINE = "llamacpp"
CTX = 2**31 - 1
_RANGES = {"ctx": (1, CTX), "max_tokens": (1, CTX), "deadline_ms": (1, 604_800_000)}
_SERVED = {"ctx": CTX, "max_tokens": 2, "deadline_ms": 600_000}
# A pool of its own: what is ordered there does not concern the tasks.
SPARE = "spare"
_POOL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PROFILE = re.compile(r".{1,64}", re.DOTALL)


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A task that can be admitted, a pool that exists, where the generated ones were valid."""
    if isinstance(case.body, dict) and case.operation.path == "/v1/tasks":
        case.body = _steered(case.body)
    if case.operation.path.startswith("/v1/pools/{id}/"):
        pool_id = (case.path_parameters or {}).get("id")
        if isinstance(pool_id, str) and _POOL_ID.fullmatch(pool_id):
            # Its url is built already; the last segment stays.
            order = case.operation.path.rpartition("/")[2]
            origin = kwargs["url"].partition("/v1/")[0] if "url" in kwargs else None
            case.path_parameters["id"] = SPARE
            if origin is not None:
                kwargs["url"] = f"{origin}/v1/pools/{SPARE}/{order}"


@schemathesis.hook  # type: ignore[untyped-decorator]
def filter_case(context: Any, case: Any) -> bool:
    """HTTP makes a server ignore headers that it does not know (RFC 9110, 5.1)."""
    return not any(name.startswith("x-schemathesis-unknown") for name in case.headers or ())


def _steered(body: dict[Any, Any]) -> dict[Any, Any]:
    mapped = dict(body)
    model_ref, profile = body.get("model_ref"), body.get("sampler_profile_version")
    if isinstance(model_ref, str) and 1 <= len(model_ref) <= 512:
        mapped["model_ref"] = MODEL
    if body.get("engine") in ("llamacpp", "vllm", "tgi", "triton"):
        mapped["engine"] = ENGINE
    if isinstance(profile, str) and _PROFILE.fullmatch(profile):
        mapped["sampler_profile_version"] = "v1"
    for name, (least, most) in _RANGES.items():
        value = body.get(name)
        if type(value) is int and least <= value <= most:
            mapped[name] = _SERVED[name]
    return mapped
