"""Loaded by schemathesis (test_fuzz.py): steers valid tasks towards what the live service serves.

Random text is never the name of a model that exists, so nothing would ever be admitted. Invariant:
a valid value is replaced by another valid one and an invalid one is left alone, so a case stays
what it was generated as, positive or negative.
"""

from __future__ import annotations

import atexit
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis

from harness_kit.http_probe import HttpProbe
from harness_kit.service_process import ALL_KEY
from harness_kit.waiting import wait_until

# What the live service of test_fuzz.py serves; the examples of the contract name the same model.
MODEL = "builtin:smollm2"
ENGINE = "llamacpp"
CTX = 2**31 - 1
DEADLINE_MS_MAX = 604_800_000
_RANGES = {"ctx": (1, CTX), "max_tokens": (1, CTX), "deadline_ms": (1, DEADLINE_MS_MAX)}
_SERVED = {"ctx": CTX, "max_tokens": 2, "deadline_ms": 600_000}
# Pools of their own: what is ordered there does not concern the tasks. An engine that somebody else
# runs is drained; one that the service launches is reloaded, and a reload lasts.
SPARE = "spare"
TRIAL = "trial"
_SWITCHES = ("reload", "promote", "rollback")
SETTLED_S = 20.0
_POOL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Where the counts go: operation id, phase, status.
ANSWERS_VARIABLE = "LLORCH_FUZZ_ANSWERS"
# Where the service listens.
PORT_VARIABLE = "LLORCH_FUZZ_PORT"
_answers: dict[str, dict[str, Counter[int]]] = {}
_PROFILE = re.compile(r".{1,64}", re.DOTALL)


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A task that can be admitted, a pool that exists, where the generated ones were valid."""
    path: str = case.operation.path
    if isinstance(case.body, dict) and path == "/v1/tasks":
        case.body = _steered(case.body)
    if not path.startswith("/v1/pools/{id}/"):
        return
    pool_id = (case.path_parameters or {}).get("id")
    if not isinstance(pool_id, str) or not _POOL_ID.fullmatch(pool_id):
        return
    order = path.rpartition("/")[2]
    case.path_parameters["id"] = pool = TRIAL if order in _SWITCHES else SPARE
    if "url" in kwargs:
        # Its url is built already; the last segment stays.
        origin = kwargs["url"].partition("/v1/")[0]
        kwargs["url"] = f"{origin}/v1/pools/{pool}/{order}"
    if pool == TRIAL and case.meta.phase.name.value in ("examples", "stateful"):
        _settle()
        if order == "promote" and not _answers.get("promote_pool"):
            _begin_canary()
    if order == "reload" and isinstance(case.body, dict):
        case.body = _quick(case.body)


def _operator() -> HttpProbe:
    return HttpProbe(int(os.environ[PORT_VARIABLE]), ALL_KEY)


def _settle() -> None:
    """Wait as an operator does before the next order: until the last reload stands somewhere."""

    def stands() -> bool:
        with _operator() as probe:
            reload = probe.get(f"/v1/pools/{TRIAL}/health").json().get("reload", {})
        return reload.get("phase") not in ("preloading", "switching", "rolling_back")

    wait_until(stands, SETTLED_S, "the reload of the pool stands")


def _begin_canary() -> None:
    """The first promotion finds something to promote, whatever was drawn before it."""
    canary = _quick({"new_model_ref": TRIAL, "deadline_ms": 1}) | {"canary_percent": 50}
    with _operator() as probe:

        def waits() -> bool:
            # Refused while one waits already.
            probe.post(f"/v1/pools/{TRIAL}/reload", canary)
            reload = probe.get(f"/v1/pools/{TRIAL}/health").json().get("reload", {})
            return bool(reload.get("phase") == "canary")

        wait_until(waits, SETTLED_S, "a canary waits to be promoted")


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """The payload of each kind of event, in the keywords that schemathesis checks events with.

    OpenAPI 3.0 knows neither `contentMediaType` nor `contentSchema`.
    """
    schemas = raw_schema["components"]["schemas"]
    if (event := schemas.get("StreamEvent")) is None:
        return
    schemas["StreamEvent"] = {
        "oneOf": [
            {
                "type": "object",
                "required": ["event", "data"] if name == "metrics" else ["event", "id", "data"],
                "properties": event["properties"]
                | {
                    "event": {"type": "string", "enum": [name]},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": payload},
                    },
                },
            }
            for name, payload in event["x-event-schemas"].items()
        ]
    }


@schemathesis.hook  # type: ignore[untyped-decorator]
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count what every operation answered in every phase."""
    operation = case.operation.definition.raw["operationId"]
    _answers.setdefault(operation, {}).setdefault(case.meta.phase.name.value, Counter())[
        response.status_code
    ] += 1


@atexit.register
def _write_answers() -> None:
    """Leave the counts for test_fuzz.py."""
    if file := os.environ.get(ANSWERS_VARIABLE):
        Path(file).write_text(json.dumps(_answers), encoding="utf-8")


@schemathesis.hook  # type: ignore[untyped-decorator]
def filter_case(context: Any, case: Any) -> bool:
    """HTTP makes a server ignore headers that it does not know (RFC 9110, 5.1)."""
    return not any(name.startswith("x-schemathesis-unknown") for name in case.headers or ())


def _quick(body: dict[Any, Any]) -> dict[Any, Any]:
    """A reload to a model that starts, and that waits for no task of the old one."""
    mapped = dict(body)
    model_ref, deadline_ms = body.get("new_model_ref"), body.get("deadline_ms")
    if isinstance(model_ref, str) and 1 <= len(model_ref) <= 512:
        mapped["new_model_ref"] = "file:/models/next.gguf"
    if type(deadline_ms) is int and 1 <= deadline_ms <= DEADLINE_MS_MAX:
        mapped["deadline_ms"] = 1000
    return mapped


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
