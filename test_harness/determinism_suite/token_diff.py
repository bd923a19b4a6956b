"""Two streams that must be equal, and the artifact that shows where they are not: text and HTML.

Streams are compared as bytes of the wire; the artifact shows tokens. Nothing is assumed between two
versions of engine or model: such streams are not compared, and that is a failure unless
ORCH_REQUIRE_SAME_ENGINE is 0. Invariant: every pair given is counted exactly once. Requirements:
ORCH-3047, ORCH-3050.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from determinism_suite.decoded_streams import DecodedStream
from harness_kit.report_files import report_file

SAME_ENGINE_VARIABLE = "ORCH_REQUIRE_SAME_ENGINE"
# Tokens shown on either side of the first one that differs.
CONTEXT_TOKENS = 8

Pair = tuple[DecodedStream, DecodedStream]

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em }}
td, th {{ font-family: monospace; padding: .1em 1em; text-align: left; white-space: pre }}
tr.diverged {{ background: #fdd; font-weight: bold }}
</style>
<h1>{title}</h1>
<p>Prompt: <code>{prompt}</code></p>
<table>
<tr><th>token</th>{heads}</tr>
{rows}
</table>
</html>
"""
_ROW = "<tr{mark}><td>{at}</td><td>{one}</td><td>{other}</td></tr>"


class Verdict(StrEnum):
    """What two streams of one entry say of each other."""

    EQUAL = "equal"
    DIVERGED = "diverged"
    NOT_COMPARABLE = "not-comparable"  # another version of engine or model decoded them


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of all pairs; `failures` are sentences, each with the path of its artifact."""

    counts: Mapping[Verdict, int]
    failures: tuple[str, ...]


def verdict_of(first: DecodedStream, second: DecodedStream) -> Verdict:
    """Compare two whole streams byte by byte, if they are of one engine version and model."""
    if (first.engine_version, first.model_digest) != (second.engine_version, second.model_digest):
        return Verdict.NOT_COMPARABLE
    return Verdict.EQUAL if first.events == second.events else Verdict.DIVERGED


def first_divergence(first: DecodedStream, second: DecodedStream) -> int:
    """The first token that differs; where one stream only ends sooner, the place of its end."""
    for place, (one, other) in enumerate(zip(first.events, second.events, strict=False)):
        if one != other:
            return place
    return min(len(first.events), len(second.events))


def compare_all(name: str, pairs: Iterable[Pair], environment: Mapping[str, str]) -> Comparison:
    """Compare every pair; one that diverges leaves `determinism/<name>-seed-<seed>.{txt,html}`."""
    same_engine = environment.get(SAME_ENGINE_VARIABLE, "1") != "0"
    counts = dict.fromkeys(Verdict, 0)
    failures = list[str]()
    for stale in report_file(f"determinism/{name}").parent.glob(f"{name}-seed-*"):
        stale.unlink()
    for first, second in pairs:
        verdict = verdict_of(first, second)
        counts[verdict] += 1
        if verdict is Verdict.DIVERGED:
            place, seed = first_divergence(first, second), first.entry.seed
            text = report_file(f"determinism/{name}-seed-{seed}.txt")
            text.write_text(as_text(first, second), encoding="utf-8")
            text.with_suffix(".html").write_text(as_html(first, second), encoding="utf-8")
            failures.append(f"seed {seed} diverges at token {place}: {text}")
        elif verdict is Verdict.NOT_COMPARABLE and same_engine:
            failures.append(
                f"seed {first.entry.seed}: {_who(first)} against {_who(second)} "
                f"({SAME_ENGINE_VARIABLE}=0 compares only what is the same)"
            )
    return Comparison(counts, tuple(failures))


def as_text(first: DecodedStream, second: DecodedStream) -> str:
    """The artifact for a terminal; the first token that differs is marked with `>`."""
    place = first_divergence(first, second)
    rows = [f"{_title(first, second)}", f"prompt: {first.entry.prompt!r}"]
    rows += [f"first:  {_who(first)}", f"second: {_who(second)}", ""]
    rows += [
        f"{'>' if at == place else ' '} {at:4}  {one:24}  {other}"
        for at, one, other in _rows(first, second)
    ]
    return "\n".join(rows) + "\n"


def as_html(first: DecodedStream, second: DecodedStream) -> str:
    """The same artifact as one page that needs no other file."""
    place = first_divergence(first, second)
    return _PAGE.format(
        title=html.escape(_title(first, second)),
        prompt=html.escape(first.entry.prompt),
        heads="".join(f"<th>{html.escape(_who(side))}</th>" for side in (first, second)),
        rows="\n".join(
            _ROW.format(
                mark=' class="diverged"' if at == place else "",
                at=at,
                one=html.escape(one),
                other=html.escape(other),
            )
            for at, one, other in _rows(first, second)
        ),
    )


def _title(first: DecodedStream, second: DecodedStream) -> str:
    place, longest = first_divergence(first, second), max(len(first.tokens), len(second.tokens))
    return f"seed {first.entry.seed} diverges at token {place} of {longest}"


def _who(side: DecodedStream) -> str:
    return (
        f"replica {side.replica_id}, {side.engine_version}, model {side.model_digest}, "
        f"PYTHONHASHSEED {side.hash_seed}"
    )


def _rows(first: DecodedStream, second: DecodedStream) -> list[tuple[int, str, str]]:
    """Place and both tokens around the first that differs; what is not there is empty."""
    place = first_divergence(first, second)
    end = min(place + CONTEXT_TOKENS + 1, max(len(first.tokens), len(second.tokens)))
    return [
        (at, _shown(first.tokens, at), _shown(second.tokens, at))
        for at in range(max(0, place - CONTEXT_TOKENS), end)
    ]


def _shown(tokens: tuple[str, ...], at: int) -> str:
    return repr(tokens[at]) if at < len(tokens) else ""
