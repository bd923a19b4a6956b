"""What a divergence looks like: the artifact's contents, and two engines that really diverge."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from determinism_suite.corpus import Entry
from determinism_suite.decoded_streams import DecodedStream, HashSeededService
from determinism_suite.token_diff import Verdict, as_html, as_text, compare_all, verdict_of
from harness_kit.gated_engine import GatedEngine, words_by_seed
from harness_kit.report_files import report_file
from harness_kit.service_process import MODEL, ServiceProcess, external_pool

ENTRY = Entry(0, 17, "Dear <captain>,", 12, {"temperature": 0.8})
WORDS = tuple(words_by_seed(ENTRY.prompt, ENTRY.seed, ENTRY.tokens))


def stream(*tokens: str, replica_id: str = "r0", **changes: str) -> DecodedStream:
    events = tuple(f'event: token\ndata: {{"t":"{text}"}}'.encode() for text in tokens)
    made = DecodedStream(ENTRY, replica_id, "e 1", "sha256:aa", "0", tokens, events)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type] # text fields only


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of reports of its own: this is no finding of the run."""
    monkeypatch.setenv("LLORCH_REPORTS_DIR", str(tmp_path))
    return tmp_path / "determinism"


@pytest.mark.req("ORCH-3050", partial="that real engines are equal")
def test_the_text_marks_the_first_token_that_differs() -> None:
    shown = as_text(stream("a", "b", "c"), stream("a", "x", "c", replica_id="r1")).splitlines()

    assert shown == [
        "seed 17 diverges at token 1 of 3",
        "prompt: 'Dear <captain>,'",
        "first:  replica r0, e 1, model sha256:aa, PYTHONHASHSEED 0",
        "second: replica r1, e 1, model sha256:aa, PYTHONHASHSEED 0",
        "",
        "     0  'a'                       'a'",
        ">    1  'b'                       'x'",
        "     2  'c'                       'c'",
    ]


@pytest.mark.req("ORCH-3050", partial="that real engines are equal")
def test_the_page_marks_one_row_and_escapes_what_models_write() -> None:
    page = as_html(stream("a", "<b>"), stream("a", "</html>"))

    assert page.count('<tr class="diverged"><td>1</td>') == 1
    assert "&#x27;&lt;b&gt;&#x27;" in page
    assert page.count("</html>") == 1
    assert "Dear &lt;captain&gt;," in page


def test_only_the_surroundings_of_the_divergence_are_shown() -> None:
    long = [str(number) for number in range(100)]

    shown = as_text(stream(*long), stream(*long[:50], "x", *long[51:]))

    places = [line.split()[-3] for line in shown.splitlines()[5:]]
    assert places == [str(place) for place in range(42, 59)]


def test_a_stream_that_ends_sooner_diverges_where_it_ends() -> None:
    shown = as_text(stream("a", "b"), stream("a"))

    assert ">    1  'b'                       " in shown.splitlines()
    assert "diverges at token 1 of 2" in shown


@pytest.mark.req("ORCH-3047")
@pytest.mark.parametrize("changed", ["engine_version", "model_digest"])
def test_streams_of_two_versions_are_not_compared_but_refused(reports: Path, changed: str) -> None:
    pair = stream("a"), stream("b", **{changed: "another"})

    strict = compare_all("e", [pair], {})
    lenient = compare_all("e", [pair], {"ORCH_REQUIRE_SAME_ENGINE": "0"})

    assert strict.counts[Verdict.NOT_COMPARABLE] == lenient.counts[Verdict.NOT_COMPARABLE] == 1
    assert len(strict.failures) == 1
    assert "another" in strict.failures[0]
    assert lenient.failures == ()
    assert list(reports.iterdir()) == []


def test_the_artifacts_of_an_earlier_run_go_away(reports: Path) -> None:
    compare_all("e", [(stream("a"), stream("b"))], {})

    found = compare_all("e", [(stream("a"), stream("a"))], {})

    assert found.counts[Verdict.EQUAL] == 1
    assert list(reports.iterdir()) == []


@pytest.mark.req("OC-TEST-7001")
@pytest.mark.req("ORCH-3050", partial="that real engines are equal")
def test_a_replica_that_swaps_one_token_is_found_and_leaves_both_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(prompt: str, seed: int, count: int) -> list[str]:
        words = words_by_seed(prompt, seed, count)
        return [*words[:5], " <lie>", *words[6:]]

    with (
        GatedEngine(slots=1) as honest,
        GatedEngine(slots=1, script=other) as liar,
        ServiceProcess(tmp_path, external_pool(honest.url, liar.url)) as running,
    ):
        running.wait_metric("replica_ready", 2)
        service = HashSeededService(running, "random")
        sides = []
        for replica in ("r0", "r1"):
            service.only(replica, ("r0", "r1"))
            sides += service.decode(MODEL, "llamacpp", [ENTRY])

    # Kept among the reports: it shows a reader what a finding would look like.
    found = compare_all("example", [(sides[0], sides[1])], {})

    text = report_file("determinism/example-seed-17.txt")
    assert [one.tokens for one in sides] == [WORDS, (*WORDS[:5], " <lie>", *WORDS[6:])]
    assert verdict_of(*sides) is Verdict.DIVERGED
    assert found.failures == (f"seed 17 diverges at token 5: {text}",)
    assert "replica r0, llama.cpp gated-1" in text.read_text()
    assert "replica r1, llama.cpp gated-1" in text.read_text()
    assert "&lt;lie&gt;" in text.with_suffix(".html").read_text()


@pytest.mark.req("ORCH-3047")
def test_the_record_of_a_stream_names_the_version_that_nobody_may_mix(tmp_path: Path) -> None:
    pool = external_pool(model=MODEL) | {"require_same_engine_version": False}
    with GatedEngine(version="one") as first, GatedEngine(version="two") as second:
        pool["replicas"] = [{"id": "r0", "url": first.url}, {"id": "r1", "url": second.url}]
        with ServiceProcess(tmp_path, pool) as running:
            running.wait_metric("replica_ready", 2)
            service = HashSeededService(running, "random")
            sides = []
            for replica in ("r0", "r1"):
                service.only(replica, ("r0", "r1"))
                sides += service.decode(MODEL, "llamacpp", [ENTRY])

    assert [one.engine_version for one in sides] == ["llama.cpp one", "llama.cpp two"]
    assert sides[0].events == sides[1].events
    assert verdict_of(*sides) is Verdict.NOT_COMPARABLE
