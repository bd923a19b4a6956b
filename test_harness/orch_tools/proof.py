"""Puts the proof bundle of a full test run together, and signs it.

Off every request's path; `make compliance` calls it after the tests. The form, and everything that
is checked of it later, is `orch_cli.proof_bundle`. The key is the Ed25519 private key (PEM) that
LLORCH_PROOF_KEY names; without one a key is made and forgotten, so that the signature shows only
that nothing was changed since.

Invariant: the private key is in no file of the bundle, and only files of the tree that `git` knows,
of the run's own reports and of the installation's versions are.
Sources: SLSA provenance v1, in-toto Statement v1, DSSE v1. Requirement: OC-CONFIG-6010.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shutil
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from orch_cli.proof_bundle import (
    COMPLIANCE,
    EVIDENCE,
    FORMAT,
    MANIFEST,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    PROVENANCE,
    PUBLIC_KEY,
    STATEMENT_TYPE,
    VERSIONS,
    Envelope,
    Manifest,
    Signature,
    files_of,
    key_id,
    pre_authentication,
)

# What of the tree an auditor reads beside the run: path in the repository, as it is in the bundle.
SOURCES = ("contracts", "requirements", COMPLIANCE, "CHANGELOG_SPEC.md", "constraints.txt")
REPORTS = "reports"
BUILD_TYPE = "urn:llama-orch:make-compliance:1"


class ProofError(Exception):
    """The bundle cannot be made; the message says what is missing."""


def build(
    root: Path,
    out: Path,
    *,
    evidence: Path,
    reports: Path,
    key: Ed25519PrivateKey,
    finished: datetime,
) -> None:
    """Write the bundle of `root` to `out`, which is replaced.

    `evidence` is what the run just wrote, `reports` the folder of its reports; `finished` is when
    it ended, with a time zone.

    Raises: ProofError; OSError.
    """
    if not evidence.exists():
        raise ProofError(f"{evidence}: the run has written no evidence")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in _tracked(root):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, out / name)
    shutil.copyfile(evidence, out / EVIDENCE)
    if reports.exists():
        shutil.copytree(reports, out / REPORTS)
    (out / VERSIONS).write_bytes(_json(_versions(root)))
    manifest = _json(msgspec.to_builtins(Manifest(FORMAT, files_of(out))))
    (out / MANIFEST).write_bytes(manifest)
    payload = _json(_statement(root, hashlib.sha256(manifest).hexdigest(), finished))
    signature = Signature(
        key_id(key.public_key()), _base64(key.sign(pre_authentication(PAYLOAD_TYPE, payload)))
    )
    envelope = Envelope(PAYLOAD_TYPE, _base64(payload), [signature])
    (out / PROVENANCE).write_bytes(_json(msgspec.to_builtins(envelope)))
    (out / PUBLIC_KEY).write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def signing_key(path: str | None) -> Ed25519PrivateKey:
    """The key in the PEM file `path`, or one for this bundle alone.

    Raises: ProofError, which never quotes the file's content.
    """
    if not path:
        return Ed25519PrivateKey.generate()
    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise ProofError(f"LLORCH_PROOF_KEY={path}: {error.strerror}") from None
    except (ValueError, TypeError):
        raise ProofError(f"LLORCH_PROOF_KEY={path}: not a private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ProofError(
            f"LLORCH_PROOF_KEY={path}: not an Ed25519 key; "
            "`openssl genpkey -algorithm ed25519` makes one"
        )
    return key


def _tracked(root: Path) -> list[str]:
    return _git(root, "ls-files", "--", *SOURCES).splitlines()


def _versions(root: Path) -> dict[str, Any]:
    """What the run was made with."""
    packages = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "changed_files": _git(root, "status", "--porcelain").splitlines(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda each: each[0].lower())),
    }


def _statement(root: Path, manifest_sha256: str, finished: datetime) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST, "digest": {"sha256": manifest_sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"command": "make compliance"},
                "resolvedDependencies": [
                    {
                        "name": "llama-orch",
                        "digest": {"gitCommit": _git(root, "rev-parse", "HEAD")},
                    }
                ],
            },
            "runDetails": {
                "builder": {"id": f"urn:host:{platform.node()}"},
                "metadata": {"finishedOn": finished.isoformat(timespec="seconds")},
            },
        },
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise ProofError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
