"""API keys: stored as keyed hashes, compared in constant time (ORCH-3035, OC-CTRL-2040).

A stored key is `v1:SALT:MAC`, both hex; MAC is HMAC-SHA256 of the key under the salt. A presented
key is looked up by a hash under a secret of this process: who cannot know the secret learns nothing
from the time a lookup takes, and one request costs one short hash however many keys there are.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

SCHEME = "v1"
SALT_BYTES = 16
# Presented keys that were looked up before; wrong ones are not kept.
MAX_CACHED_KEYS = 4096


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: one configured key."""

    id: str
    tenant: str
    roles: frozenset[str]


def hash_key(key: bytes, salt: bytes | None = None) -> str:
    """The `key_hmac` of a key for the configuration file; a fresh salt unless one is given."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    return f"{SCHEME}:{salt.hex()}:{hmac.digest(salt, key, 'sha256').hex()}"


def verify(key: bytes, key_hmac: str) -> bool:
    """Whether the key is the stored one. Raises `ValueError` on a malformed `key_hmac`."""
    scheme, salt, mac = _parse(key_hmac)
    if scheme != SCHEME:
        raise ValueError(f"key_hmac: unknown scheme {scheme!r}, expected {SCHEME!r}")
    return hmac.compare_digest(hmac.digest(salt, key, "sha256"), mac)


def _parse(key_hmac: str) -> tuple[str, bytes, bytes]:
    parts = key_hmac.split(":")
    if len(parts) != 3:
        raise ValueError("key_hmac: expected v1:SALT:MAC as `llama-orch keys hash` prints it")
    try:
        return parts[0], bytes.fromhex(parts[1]), bytes.fromhex(parts[2])
    except ValueError:
        raise ValueError("key_hmac: salt and MAC must be hexadecimal") from None


class KeyRing:
    """All configured keys. `find` is on the path of every request."""

    def __init__(self, stored: Iterable[tuple[str, Principal]]) -> None:
        """`stored` pairs `key_hmac` and principal. Raises `ValueError` on a malformed one."""
        self._stored = [(key_hmac, principal) for key_hmac, principal in stored]
        for key_hmac, _ in self._stored:
            verify(b"", key_hmac)
        self._secret = secrets.token_bytes(32)
        self._known: dict[bytes, Principal] = {}

    def find(self, key: bytes) -> Principal | None:
        """The principal of a presented key, or None."""
        digest = hashlib.blake2b(key, key=self._secret, digest_size=16).digest()
        principal = self._known.get(digest)
        if principal is not None:
            return principal
        found = None
        for key_hmac, candidate in self._stored:  # all of them: time tells nothing
            if verify(key, key_hmac):
                found = candidate
        if found is not None and len(self._known) < MAX_CACHED_KEYS:
            self._known[digest] = found
        return found
