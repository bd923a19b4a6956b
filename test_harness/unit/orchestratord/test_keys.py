"""A key is stored as its keyed digest, and only the key fits it."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from orchestratord.api import keys
from orchestratord.api.keys import KeyRing, Principal, hash_key, verify

ANNA = Principal("anna", "acme", frozenset({"data"}))
BOB = Principal("bob", "umbra", frozenset({"control"}))


@pytest.mark.req("ORCH-3035", partial="their use")
def test_a_stored_key_is_its_hmac_under_its_salt() -> None:
    # RFC 4231, test case 2: HMAC-SHA256 of "what do ya want for nothing?" under "Jefe".
    mac = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"

    assert hash_key(b"what do ya want for nothing?", b"Jefe") == f"v1:{b'Jefe'.hex()}:{mac}"


@pytest.mark.req("ORCH-3035", partial="their use")
def test_each_hash_has_a_salt_of_its_own_and_still_fits_its_key_only() -> None:
    first, second = hash_key(b"secret"), hash_key(b"secret")

    assert first != second
    assert verify(b"secret", first)
    assert verify(b"secret", second)
    assert not verify(b"Secret", first)
    assert not verify(b"", first)
    assert "secret" not in first


@pytest.mark.parametrize(
    ("malformed", "what"),
    [
        ("", "expected v1:SALT:MAC"),
        ("v1:00", "expected v1:SALT:MAC"),
        ("v1:00:11:22", "expected v1:SALT:MAC"),
        ("v1:xx:00", "hexadecimal"),
        ("v1:00:0", "hexadecimal"),
        ("v2:00:11", "unknown scheme 'v2'"),
    ],
)
def test_a_malformed_stored_key_is_refused_where_it_is_read(malformed: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        verify(b"key", malformed)
    with pytest.raises(ValueError, match=what):
        KeyRing([(malformed, ANNA)])


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040", partial="their use")
def test_the_ring_knows_its_keys_and_no_others_first_time_and_later() -> None:
    ring = KeyRing([(hash_key(b"key-a"), ANNA), (hash_key(b"key-b"), BOB)])

    for _ in range(2):
        assert ring.find(b"key-a") is ANNA
        assert ring.find(b"key-b") is BOB
        assert ring.find(b"key-c") is None
        assert ring.find(b"") is None


def test_a_wrong_key_is_compared_with_every_stored_one_and_a_known_one_with_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = KeyRing([(hash_key(b"key-a"), ANNA), (hash_key(b"key-b"), BOB)])
    compared: list[bytes] = []

    def watched(key: bytes, key_hmac: str) -> bool:
        compared.append(key)
        return verify(key, key_hmac)

    monkeypatch.setattr(keys, "verify", watched)

    assert ring.find(b"key-a") is ANNA
    assert len(compared) == 2, "the first match does not end the search"
    assert ring.find(b"key-a") is ANNA
    assert len(compared) == 2, "what was found is remembered"
    assert ring.find(b"wrong") is None
    assert ring.find(b"wrong") is None
    assert len(compared) == 6, "a wrong key is not remembered"


def test_macs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", watched)
    stored = hash_key(b"secret", b"salt")

    assert not verify(b"guess", stored)

    theirs = hmac.new(b"salt", b"guess", hashlib.sha256).digest()
    ours = hmac.new(b"salt", b"secret", hashlib.sha256).digest()
    assert compared == [(theirs, ours)]


def test_remembered_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def watched(key: bytes, key_hmac: str) -> bool:
        compared.append(key)
        return verify(key, key_hmac)

    monkeypatch.setattr(keys, "MAX_CACHED_KEYS", 1)
    ring = KeyRing([(hash_key(b"key-a"), ANNA), (hash_key(b"key-b"), BOB)])
    monkeypatch.setattr(keys, "verify", watched)

    found = [ring.find(key) for key in (b"key-a", b"key-b", b"key-b", b"key-a")]

    assert found == [ANNA, BOB, BOB, ANNA]
    assert compared == [b"key-a"] * 2 + [b"key-b"] * 4, "there was room for the first only"
