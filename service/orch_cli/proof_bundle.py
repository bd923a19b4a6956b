"""The form of a proof bundle, and what can be held against one.

A bundle is a folder: what a test run proved (evidence, COMPLIANCE.md, requirements, contracts,
reports), `manifest.json` with the SHA-256 of every other file, and a signed statement over the
manifest: an in-toto Statement v1 with an SLSA v1 provenance in a DSSE envelope, Ed25519. Nothing
here needs the service or the repository, so that an auditor can check a bundle that was mailed.

Invariant: a bundle from which one byte of one file is changed, missing or added has a problem. The
signature by a key that is not known to the reader shows that nothing was changed since, not who
made it. Sources: DSSE v1, in-toto attestation framework v1, SLSA provenance v1. Requirement:
OC-CONFIG-6010.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

FORMAT = "llama-orch-proof/1"
MANIFEST = "manifest.json"
PROVENANCE = "provenance.dsse.json"
PUBLIC_KEY = "public_key.pem"
EVIDENCE = "evidence.json"
COMPLIANCE = "COMPLIANCE.md"
VERSIONS = "versions.json"

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"

# What the manifest cannot hold: itself, and what is made from it.
UNLISTED = frozenset({MANIFEST, PROVENANCE, PUBLIC_KEY})
# A problem is for a person: beyond so many of a kind the rest is a number.
MAX_PROBLEMS_OF_A_KIND = 20

_Form = TypeVar("_Form")
_ROW = re.compile(r"^\| \[([A-Z0-9-]+)\]\([^)]*\) \| (MUST|SHOULD|MAY) \| ([a-z ]+) \|")


class FileDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its path from the bundle, with `/`, its size and its SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All files of a bundle, sorted by path."""

    format: str
    files: list[FileDigest]


class Signature(msgspec.Struct, frozen=True):
    """A DSSE signature: `keyid` is the SHA-256 of the raw public key, `sig` is base64."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """A DSSE envelope; `payload` is base64."""

    payload_type: str
    payload: str
    signatures: list[Signature]


class Verification(msgspec.Struct, frozen=True):
    """What a check came to. `trusted` says whether the reader's own key signed it; `statuses`
    counts the requirements by their status.
    """

    problems: list[str]
    files: int
    key_id: str
    trusted: bool
    commit: str
    finished_on: str
    statuses: dict[str, int]


class NotABundle(Exception):
    """The folder holds no manifest and provenance of this form."""


def digest_of(path: Path, name: str) -> FileDigest:
    """Read the file `path` and give its digest under `name`. Raises: OSError."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(name, path.stat().st_size, sha256)


def files_of(folder: Path) -> list[FileDigest]:
    """Every file below `folder` that a manifest lists, sorted. Raises: OSError."""
    found = (
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    )
    return [digest_of(path, name) for name, path in sorted(found) if name not in UNLISTED]


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes that a DSSE signature is over (DSSE v1, PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key: the SHA-256 of its raw bytes in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM. Raises: OSError; ValueError for any other content."""
    key = load_pem_public_key(path.read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path}: not an Ed25519 key")
    return key


def verify(folder: Path, trusted: Ed25519PublicKey | None = None) -> Verification:
    """Hold everything against a bundle that can be checked without running it again.

    Without `trusted` the signature is checked with the key that lies in the bundle.

    Raises: NotABundle; OSError where a file cannot be read.
    """
    manifest_bytes = _read(folder, MANIFEST)
    manifest = _decode(folder, MANIFEST, manifest_bytes, Manifest)
    envelope = _decode(folder, PROVENANCE, _read(folder, PROVENANCE), Envelope)
    if manifest.format != FORMAT:
        raise NotABundle(f"{folder / MANIFEST}: format {manifest.format!r}, known is {FORMAT!r}")
    key = trusted or _key_of(folder)
    statement, signed = _statement(envelope, key)
    problems = [
        *_differences(folder, manifest),
        *signed,
        *_subject(statement, manifest_bytes),
        *_claims(folder),
    ]
    predicate = statement.get("predicate", {})
    return Verification(
        problems=problems,
        files=len(manifest.files),
        key_id=key_id(key),
        trusted=trusted is not None and not signed,
        commit=_at(predicate, "buildDefinition", "resolvedDependencies", 0, "digest", "gitCommit"),
        finished_on=_at(predicate, "runDetails", "metadata", "finishedOn"),
        statuses=dict(Counter(status for _, status in _rows(folder))),
    )


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise NotABundle(
            f"{folder} holds no {name}: a bundle is made by `make compliance`"
        ) from None


def _decode(folder: Path, name: str, content: bytes, form: type[_Form]) -> _Form:
    try:
        return msgspec.json.decode(content, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotABundle(f"{folder / name}: {error}") from None


def _key_of(folder: Path) -> Ed25519PublicKey:
    _read(folder, PUBLIC_KEY)
    try:
        return load_public_key(folder / PUBLIC_KEY)
    except ValueError as error:
        raise NotABundle(f"{folder / PUBLIC_KEY}: {error}") from None


def _statement(envelope: Envelope, key: Ed25519PublicKey) -> tuple[dict[str, Any], list[str]]:
    """What was signed, and what is wrong with the signature."""
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(each.sig, validate=True) for each in envelope.signatures]
        statement = json.loads(payload)
    except ValueError as error:
        return {}, [f"{PROVENANCE}: {error}"]
    if not isinstance(statement, dict) or envelope.payload_type != PAYLOAD_TYPE:
        return {}, [f"{PROVENANCE}: not an in-toto statement"]
    signed = pre_authentication(envelope.payload_type, payload)
    if not any(_is_signature(key, each, signed) for each in signatures):
        return statement, [f"{PROVENANCE}: no valid signature by the key {key_id(key)}"]
    return statement, []


def _is_signature(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _subject(statement: dict[str, Any], manifest: bytes) -> list[str]:
    subject = [{"name": MANIFEST, "digest": {"sha256": hashlib.sha256(manifest).hexdigest()}}]
    if statement and statement.get("subject") != subject:
        return [f"{MANIFEST}: not the one that was signed"]
    return []


def _differences(folder: Path, manifest: Manifest) -> Iterator[str]:
    there = {each.path: each for each in files_of(folder)}
    listed = {each.path: each for each in manifest.files}
    yield from _first(sorted(listed.keys() - there.keys()), lambda name: f"{name}: missing")
    yield from _first(
        sorted(there.keys() - listed.keys()), lambda name: f"{name}: not in {MANIFEST}"
    )
    changed = sorted(name for name in listed.keys() & there.keys() if listed[name] != there[name])
    yield from _first(changed, lambda name: f"{name}: {_change(listed[name], there[name])}")


def _change(listed: FileDigest, found: FileDigest) -> str:
    return f"changed: listed with sha256 {listed.sha256[:16]}…, is {found.sha256[:16]}…"


def _first(names: list[str], problem: Callable[[str], str]) -> Iterator[str]:
    yield from map(problem, names[:MAX_PROBLEMS_OF_A_KIND])
    if len(names) > MAX_PROBLEMS_OF_A_KIND:
        yield f"… and {len(names) - MAX_PROBLEMS_OF_A_KIND} more like these"


def _claims(folder: Path) -> Iterator[str]:
    """Where COMPLIANCE.md says more than the run's own evidence does."""
    evidence = _evidence(folder)
    if evidence is None:
        yield f"{EVIDENCE}: not of the form {{id: {{test: outcome}}}}"
        return
    failed = sorted(
        {test for of in evidence.values() for test, how in of.items() if how != "passed"}
    )
    yield from _first(failed, lambda test: f"{EVIDENCE}: {test} did not pass")
    rows = dict(_rows(folder))
    if not rows:
        yield f"{COMPLIANCE}: lists no requirement"
    for requirement, status in rows.items():
        outcomes = set(evidence.get(requirement, {}).values())
        if status in ("proven", "partial") and outcomes != {"passed"}:
            yield f"{COMPLIANCE}: {requirement} is {status}, the evidence does not show it"
        if status == "untested" and outcomes:
            yield f"{COMPLIANCE}: {requirement} is untested, the evidence has tests of it"
    for requirement in sorted(evidence.keys() - rows.keys()):
        yield f"{COMPLIANCE}: {requirement} of the evidence is not listed"


def _evidence(folder: Path) -> dict[str, dict[str, str]] | None:
    try:
        return msgspec.json.decode((folder / EVIDENCE).read_bytes(), type=dict[str, dict[str, str]])
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _rows(folder: Path) -> Iterator[tuple[str, str]]:
    try:
        text = (folder / COMPLIANCE).read_text("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        if row := _ROW.match(line):
            yield row[1], row[3]


def _at(document: Any, *path: str | int) -> str:
    """The text at `path`, "" where there is none."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return ""
    return document if isinstance(document, str) else ""
