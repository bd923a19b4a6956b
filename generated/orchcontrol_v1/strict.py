"""Base classes of the generated types. Generated; do not edit."""

from __future__ import annotations

import msgspec


class Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is sent to us: an unknown field is an error."""


class Open(msgspec.Struct, kw_only=True):
    """What we send: readers ignore fields that a later version added."""
