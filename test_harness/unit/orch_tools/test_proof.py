"""A proof bundle, and what is found when it is changed or claims too much."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from orch_cli.main import app
from orch_cli.proof_bundle import NotABundle, Verification, verify
from orch_tools.proof import ProofError, build, signing_key

pytestmark = pytest.mark.req("OC-CONFIG-6010", partial="all but the proof bundle")

FINISHED = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ROWS = """\
| [ORCH-1](spec.md#a) | MUST | proven | [t](t.py) |  |
| [ORCH-2](spec.md#a) | MUST | partial | [t](t.py) |  |
| [ORCH-3](spec.md#a) | SHOULD | untested |  |  |
"""
PROOF = {"ORCH-1": {"t.py::a": "passed"}, "ORCH-2": {"t.py::a": "passed"}}


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def made(
        rows: str = ROWS, proof: dict[str, dict[str, str]] = PROOF, key: Ed25519PrivateKey = KEY
    ) -> Path:
        tree, reports = tmp_path / "tree", tmp_path / "reports"
        for folder in (tree / "contracts", reports / "chaos"):
            folder.mkdir(parents=True)
        (tree / "contracts" / "metrics.yaml").write_text("metrics: []\n")
        (tree / "COMPLIANCE.md").write_text(rows)
        (reports / "chaos" / "faults.json").write_text('{"faults": 50}')
        evidence = tmp_path / "fresh.json"
        evidence.write_text(json.dumps(proof))
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
            subprocess.run(["git", "-C", tree, *_AUTHOR, *arguments], check=True)
        (tree / "contracts" / "scratch.yaml").write_text("not tracked")
        out = tmp_path / "proof"
        build(tree, out, evidence=evidence, reports=reports, key=key, finished=FINISHED)
        return out

    return made


_AUTHOR = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")


def test_a_bundle_is_what_the_tree_and_the_run_hold_and_nothing_else(
    bundle: Callable[..., Path],
) -> None:
    folder = bundle()

    found = verify(folder, KEY.public_key())

    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "COMPLIANCE.md",
        "contracts/metrics.yaml",
        "evidence.json",
        "manifest.json",
        "provenance.dsse.json",
        "public_key.pem",
        "reports/chaos/faults.json",
        "versions.json",
    ]
    assert found.problems == []
    assert found.trusted
    assert found.files == 5
    assert found.statuses == {"proven": 1, "partial": 1, "untested": 1}
    assert found.finished_on == "2026-11-23T12:30:00+00:00"
    assert found.commit == json.loads((folder / "versions.json").read_text())["commit"]


def test_the_private_key_is_in_no_file(bundle: Callable[..., Path]) -> None:
    folder = bundle()

    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert pem.splitlines()[1] not in everything
    assert KEY.private_bytes_raw() not in everything


def _change(folder: Path) -> None:
    (folder / "reports" / "chaos" / "faults.json").write_text('{"faults": 51}')


def _remove(folder: Path) -> None:
    (folder / "reports" / "chaos" / "faults.json").unlink()


def _add(folder: Path) -> None:
    (folder / "reports" / "more.json").write_text("{}")


def _list_what_is_there(folder: Path) -> None:
    _change(folder)
    document = json.loads((folder / "manifest.json").read_text())
    for file in document["files"]:
        if file["path"].endswith("faults.json"):
            content = (folder / file["path"]).read_bytes()
            file["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def _sign_something_else(folder: Path) -> None:
    envelope = json.loads((folder / "provenance.dsse.json").read_text())
    envelope["payload"] = "e30="  # {}
    (folder / "provenance.dsse.json").write_text(json.dumps(envelope))


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (_change, "reports/chaos/faults.json: changed"),
        (_remove, "reports/chaos/faults.json: missing"),
        (_add, "reports/more.json: not in manifest.json"),
        (_list_what_is_there, "manifest.json: not the one that was signed"),
        (_sign_something_else, "provenance.dsse.json: no valid signature"),
    ],
)
def test_what_is_changed_afterwards_is_named(
    tamper: Callable[[Path], None], problem: str, bundle: Callable[..., Path]
) -> None:
    folder = bundle()

    tamper(folder)

    assert [each for each in verify(folder).problems if each.startswith(problem)]


@pytest.mark.parametrize(
    ("rows", "proof", "problem"),
    [
        (ROWS, {"ORCH-2": PROOF["ORCH-2"]}, "ORCH-1 is proven, the evidence does not show it"),
        (ROWS, PROOF | {"ORCH-3": {"t.py::b": "passed"}}, "ORCH-3 is untested, the evidence has"),
        (ROWS, PROOF | {"ORCH-9": {"t.py::b": "passed"}}, "ORCH-9 of the evidence is not listed"),
        (ROWS, PROOF | {"ORCH-1": {"t.py::a": "failed"}}, "evidence.json: t.py::a did not pass"),
        ("no table\n", {}, "COMPLIANCE.md: lists no requirement"),
    ],
)
def test_a_claim_beyond_the_evidence_is_named(
    rows: str, proof: dict[str, dict[str, str]], problem: str, bundle: Callable[..., Path]
) -> None:
    folder = bundle(rows, proof)

    found = verify(folder, KEY.public_key())

    assert [each for each in found.problems if problem in each]


def test_another_key_than_the_reader_trusts_is_a_problem(bundle: Callable[..., Path]) -> None:
    folder = bundle(key=OTHER_KEY)

    found = verify(folder, KEY.public_key())

    assert [each for each in found.problems if "no valid signature by the key" in each]
    assert not found.trusted


def test_without_a_trusted_key_nobody_is_trusted(bundle: Callable[..., Path]) -> None:
    found = verify(bundle())

    assert (found.problems, found.trusted) == ([], False)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotABundle, match=r"holds no manifest\.json"):
        verify(tmp_path)


class TestCommandLine:
    def test_a_good_bundle_is_ok(self, bundle: Callable[..., Path]) -> None:
        done = CliRunner().invoke(app, ["proof", "verify", str(bundle())])

        assert done.exit_code == 0
        assert done.stdout.endswith("\nok\n")

    def test_a_changed_one_is_exit_1_with_the_file_named(self, bundle: Callable[..., Path]) -> None:
        folder = bundle()
        _change(folder)

        done = CliRunner().invoke(app, ["proof", "verify", str(folder), "--json"])

        assert done.exit_code == 1
        (problem,) = Verification(**json.loads(done.stdout)).problems
        assert problem.startswith("reports/chaos/faults.json: changed")

    def test_a_key_that_is_none_is_wrong_usage(
        self, bundle: Callable[..., Path], tmp_path: Path
    ) -> None:
        (tmp_path / "key.pem").write_text("hello")

        done = CliRunner().invoke(
            app, ["proof", "verify", str(bundle()), "--key", str(tmp_path / "key.pem")]
        )

        assert done.exit_code == 2
        assert "openssl pkey -pubout" in done.stderr


class TestSigningKey:
    def test_a_named_key_signs(self, tmp_path: Path) -> None:
        pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "key.pem").write_bytes(pem)

        key = signing_key(str(tmp_path / "key.pem"))

        assert key.private_bytes_raw() == KEY.private_bytes_raw()

    def test_a_file_that_is_no_key_is_named_and_not_quoted(self, tmp_path: Path) -> None:
        (tmp_path / "key.pem").write_text("hunter2")

        with pytest.raises(ProofError, match=r"LLORCH_PROOF_KEY=.*key\.pem") as error:
            signing_key(str(tmp_path / "key.pem"))

        assert "hunter2" not in str(error.value)

    def test_without_one_each_bundle_has_its_own(self) -> None:
        keys = {signing_key(None).private_bytes_raw() for _ in range(2)}

        assert len(keys) == 2
