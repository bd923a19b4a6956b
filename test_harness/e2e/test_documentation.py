"""The documents as their readers use them: every block of code is run, or checked for what it is.

The commands and snippets of one document run from its first to its last line in one shell, as
somebody pastes them, against a service that the README's own configuration starts; in place of
llama.cpp it launches fake engines, which load at once. What cannot be run says why in a comment
before the block, and stands in `NOT_RUN`. Requirements: ORCH-2006, OC-CLI-8001.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness_kit import secret_scan
from harness_kit.engine_process import free_port
from harness_kit.model_files import gguf_bytes, llama_metadata, llama_tensors
from harness_kit.scripted_cli import every_command
from harness_kit.waiting import wait_until
from orchestratord.configuration.load import config_schema

ROOT = Path(__file__).resolve().parents[2]
README = "README.md"
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in (README, "CONTRIBUTING.md", "SECURITY.md")),
        *ROOT.glob("docs/*.md"),
    )
)
# The blocks that nothing runs, by document and first words; each says why, where it stands.
NOT_RUN = {
    ("CONTRIBUTING.md", "make help"),
    ("CONTRIBUTING.md", "placement: prefer a warm replica on a tie"),
    (README, "make demo"),
    (README, "flowchart LR"),
    ("docs/operations.md", "┌──── (not tested) ────┐"),
    ("docs/proof.md", "LLORCH_PROOF_KEY=signing.pem make compliance"),
}
# On a quiet machine the longest takes a tenth of it.
DOCUMENT_S = 240.0
END_S = 20.0
FAKE_ENGINE = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}"]
# So slow that a killed service leaves a stream in its middle, as it is with a real model.
FAKE_ARGUMENTS = ["--ctx", "8192", "--token-interval-ms", "8"]
# What a document that is not the README takes for granted: its service, and a task of it.
KEY = "a-key-of-the-documentation"
secret_scan.learn((KEY,))
RUNNING = f"""
export ACME_KEY={KEY}
export LLAMA_ORCH_API_KEY=$ACME_KEY METRICS_KEY=$ACME_KEY
llama-orch serve --config llama-orch.yaml 2>service.log & SERVICE=$!
ID=$(llama-orch submit "The sea was" --max-tokens 16 --temperature 0.8 --seed 11 --retry 20)
llama-orch stream $ID
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code; `line` is its first one in the document, `not_run` why nobody runs it."""

    document: str
    line: int
    language: str
    text: str
    not_run: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def title(self) -> str:
        return re.split(r"\s{2,}|\n", self.text.strip())[0]


def tokens_of(document: str) -> list[Token]:
    return MarkdownIt().enable("table").parse((ROOT / document).read_text("utf-8"))


def blocks_of(document: str) -> Iterator[Block]:
    """The blocks in the document's order; an indented one has no language."""
    tokens = tokens_of(document)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            comment = before.content if before is not None and before.type == "html_block" else ""
            said = re.fullmatch(r"<!-- not run: (.+) -->\s*", comment)
            reason = said[1] if said else ""
            yield Block(document, token.map[0] + 2, token.info, token.content, reason)


def prose_code(document: str) -> Iterator[str]:
    """The code within sentences."""
    for token in tokens_of(document):
        for inline in token.children or ():
            if inline.type == "code_inline":
                yield inline.content


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
RUN = [block for block in BLOCKS if not block.not_run]
SHELL = [block for block in RUN if block.language in ("sh", "python")]
SETTINGS = [block for block in RUN if block.language == "yaml"]


def test_only_the_listed_blocks_are_not_run() -> None:
    left = {(block.document, block.title) for block in BLOCKS if block.not_run}

    assert left == NOT_RUN


def test_no_block_escapes_by_its_language() -> None:
    unknown = [block.name for block in RUN if block.language not in ("sh", "python", "yaml")]

    assert unknown == []


@pytest.fixture(scope="module")
def read_and_typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit status and output of each document that tells to type something, all at once."""
    documents = sorted({block.document for block in SHELL})
    homes = [tmp_path_factory.mktemp("reader") for _ in documents]
    with ThreadPoolExecutor(len(documents)) as readers:
        return dict(zip(documents, readers.map(play, documents, homes), strict=True))


@pytest.mark.req("OC-CLI-8001", partial="what the documents show")
@pytest.mark.timeout(DOCUMENT_S + END_S + 20)
@pytest.mark.parametrize("document", sorted({block.document for block in SHELL}))
def test_what_the_document_tells_to_type_works(
    document: str, read_and_typed: dict[str, tuple[int, str]]
) -> None:
    status, said = read_and_typed[document]

    assert status == 0, said[-5000:]


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: block.name)
def test_settings_shown_are_settings_that_are_taken(block: Block, tmp_path: Path) -> None:
    shown = yaml.safe_load(block.text)

    if "scrape_configs" in shown:
        assert_prometheus_takes(shown, tmp_path)
    else:
        assert wrong_settings(shown) == []


def test_a_setting_that_does_not_exist_is_noticed() -> None:
    shown = yaml.safe_load("pools: [{queue: {capacities: 3}}]")

    assert wrong_settings(shown) != []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_and_commands_that_are_named_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = {words[0] for words in every_command() if words}
    texts = [block.text for block in BLOCKS if block.document == document] + [
        code for code in prose_code(document) if code.startswith(("make ", "llama-orch "))
    ]

    named_targets = {name for text in texts for name in re.findall(r"\bmake ([a-z]+)", text)}
    named_commands = {
        name for text in texts for name in re.findall(r"\bllama-orch ([a-z][a-z-]+)", text)
    }

    assert named_targets - targets == set()
    assert named_commands - commands == set()


def test_variables_that_are_named_are_read_somewhere() -> None:
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(
            r"\b(?:LLORCH|LLAMA_ORCH|HAIKU)_[A-Z_]+", (ROOT / document).read_text("utf-8")
        )
    }
    sources = [ROOT / "Makefile", *ROOT.glob("service/**/*.py"), *ROOT.glob("test_harness/**/*.py")]

    read = {name for path in sources for name in named if name in path.read_text("utf-8")}

    assert named - read == set()


def typed(document: str) -> str:
    """One script of all that the document tells to type; it stops where something fails."""
    parts = ["set -Eeuo pipefail", """trap 'echo "$AT: exit status $?" >&2' ERR"""]
    if document != README:
        parts += ["AT='before the document'", RUNNING]
    for block in SHELL:
        if block.document == document:
            snippet = block.text
            if block.language == "python":
                snippet = f"python - <<'SNIPPET'\n{snippet}SNIPPET\n"
            parts += [f"AT={block.name}", snippet]
    return "\n".join(parts)


def as_found_here(text: str, home: Path, port: str) -> str:
    """The text with the places of its examples replaced by places of this machine."""
    for example, here in (
        ("orchestrator:8080", f"127.0.0.1:{port}"),
        ("8080", port),
        ("/downloads/model.gguf", f"{home}/next.gguf"),
        ("/models/", f"{home}/"),
        ("/backup/", f"{home}/"),
    ):
        text = text.replace(example, here)
    return text


def prepare(home: Path, port: str) -> None:
    """Fill the reader's folder: the README's configuration, one of a GPU host, a model."""
    (first,) = (block for block in SETTINGS if block.document == README)
    settings: dict[str, Any] = yaml.safe_load(as_found_here(first.text, home, port))
    launch = {"command": FAKE_ENGINE, "args": FAKE_ARGUMENTS}
    settings["pools"][0]["launch"] |= launch
    remote = {"id": "large", "engine": "llamacpp", "model": f"file:{home}/large.gguf", "ctx": 2048}
    (home / "gpu-host.yaml").write_text(
        yaml.safe_dump(
            {
                "server": {"state_dir": str(home / "gpu-host"), "port": 0},
                "auth": {"enabled": False},
                "platform": settings["platform"],
                "pools": [remote | {"launch": launch | {"count": 1}}],
            }
        ),
        encoding="utf-8",
    )
    settings["pools"].append(remote | {"managed": True})
    (home / "llama-orch.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for name in ("next.gguf", "large.gguf"):
        (home / name).write_bytes(gguf_bytes(llama_metadata(), llama_tensors()))
    for name in ("generated", "contracts", "test_harness"):
        (home / name).symlink_to(ROOT / name)


def play(document: str, home: Path) -> tuple[int, str]:
    """Type the document; its exit status, and what it and its service said last."""
    port = str(free_port())
    prepare(home, port)
    script = home / "document.sh"
    script.write_text(as_found_here(typed(document), home, port), encoding="utf-8")
    status, said = run_in_shell(script, home, port)
    log = (home / "service.log").read_text("utf-8")
    secret_scan.check("log", log, document)
    return status, log[-2000:] + said


def run_in_shell(script: Path, home: Path, port: str) -> tuple[int, str]:
    """Exit status and output; whatever the script has left running is ended."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LLAMA_ORCH_URL": f"http://127.0.0.1:{port}",
        "LLORCH_REPORTS_DIR": str(home / "reports"),
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
    }
    output = home / "output.txt"
    with output.open("wb") as sink:
        shell = subprocess.Popen(
            ["bash", str(script)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(DOCUMENT_S)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            end_group(shell)
    return status, output.read_text("utf-8", errors="replace")


def end_group(shell: subprocess.Popen[bytes]) -> None:
    """SIGTERM, in time for a service to end its engines, then SIGKILL to all of the shell's."""
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_until(lambda: shell.poll() is not None and not group_lives(shell.pid), END_S)
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wrong_settings(shown: object) -> list[str]:
    """What the schema does not take; an excerpt may leave out what a whole file needs."""
    validator = jsonschema.Draft202012Validator(config_schema())
    return [
        error.message for error in validator.iter_errors(shown) if error.validator != "required"
    ]


def assert_prometheus_takes(shown: dict[str, Any], home: Path) -> None:
    """The excerpt as a file, with the rules that it names; the key's file is the reader's."""
    (home / "prometheus.yml").write_text(yaml.safe_dump(shown), encoding="utf-8")
    (home / "generated").symlink_to(ROOT / "generated")

    checked = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", "prometheus.yml"],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert all((home / name).exists() for name in shown["rule_files"])
