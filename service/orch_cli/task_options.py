"""The options of `submit` against the contract, told in the words of the command line.

Sits before the first call. Invariant: the contract's own type decides; here its sentence about a
field becomes one about the option that the user wrote (OC-CLI-8001).
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from orch_cli.exit_codes import CliError
from orchqueue_v1.types import TaskRequest

# msgspec's sentence, then the path: $.task_id, $.sampling.temperature, $.inputs[3].
_PLACE = re.compile(r"(?P<rule>.*) - at `\$\.(?:sampling\.)?(?P<field>\w+)(?P<rest>.*)`")
_OPTIONS = {
    "session_id": "--session",
    "model_ref": "--model",
    "sampler_profile_version": "--sampler-profile",
    "inputs": "--input",
    "prompt": "the prompt",
    "messages": "the prompt",
}
_TYPES = {"int": "a whole number", "float": "a number", "str": "text", "array": "a list"}
_VALUE_CHARACTERS_MAX = 60


def checked_task(fields: dict[str, Any]) -> TaskRequest:
    """Return the task that `fields` make. Raises `CliError` naming the option and its value."""
    try:
        # Encoded as it will be sent: also tells text that is none, and finite numbers.
        msgspec.json.encode(fields)
        for name, value in fields.get("sampling", {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise CliError(f"{_option(name)} {value}: must be a finite number")
        return msgspec.convert(fields, TaskRequest)
    except msgspec.ValidationError as error:
        raise CliError(_sentence(str(error), fields)) from None


def _sentence(told: str, fields: dict[str, Any]) -> str:
    place = _PLACE.fullmatch(told)
    if place is None:
        return f"the task breaks the contract: {told}"
    field = place["field"]
    value = fields.get("sampling", {}).get(field, fields.get(field))
    shown = "" if place["rest"] or field in {"prompt", "messages"} else f" {value}"
    if len(shown) > _VALUE_CHARACTERS_MAX:
        shown = shown[: _VALUE_CHARACTERS_MAX - 1] + "…"
    rule = place["rule"]
    if field in {"task_id", "session_id"}:
        rule = "is not a UUID"
    for name, words in _TYPES.items():
        rule = rule.replace(f"Expected `{name}`", f"must be {words}")
    return f"{_option(field)}{shown}: {rule}"


def _option(field: str) -> str:
    return _OPTIONS.get(field, "--" + field.replace("_", "-"))
