"""Ids that stand on the command line: a word that cannot be one is told before anybody is asked.

Invariant: what is refused here would be refused by the contract's schema as well (`Uuid` in
`contracts/openapi/data.yaml`, RFC 9562). (OC-CLI-8001)
"""

from __future__ import annotations

import re

from orch_cli.exit_codes import CliError

_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def uuid_argument(name: str, value: str) -> str:
    """Return `value`, which the command line calls `name`. Raises `CliError` where it is no UUID.

    Only the 36-character form counts.
    """
    if _UUID.fullmatch(value) is None:
        raise CliError(
            f"{name} {value}: is not a UUID",
            hint="36 characters like 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11, as submit printed it",
        )
    return value
