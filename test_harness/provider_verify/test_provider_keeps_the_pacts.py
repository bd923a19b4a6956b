"""The committed pacts against the running service: every answer that a consumer relies on.

The verifier sends each request of `contracts/pacts/` as it stands there, in the state that the
interaction names, and compares what comes back with what the consumer can live with.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pact import Verifier

from consumer_pacts.writing import PACTS, PROVIDER
from harness_kit.report_files import report_file
from provider_verify.provider_states import Provider, provider
from provider_verify.state_server import state_server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider(tmp_path_factory.mktemp("provider")) as started:
        yield started


def verify(running: Provider, consumer: str) -> None:
    """All interactions of the consumer's pact. Raises AssertionError with what differs."""
    path = PACTS / f"{consumer}-{PROVIDER}.json"
    verifier = Verifier(PROVIDER, host="127.0.0.1")
    verifier.add_transport(url=f"http://127.0.0.1:{running.service.port}")
    # For states as well as answers: a busy machine takes its time, and nothing is late by itself.
    verifier.set_request_timeout(60_000)
    verifier.add_source(path).set_coloured_output(enabled=False)
    with state_server(running.set) as (url, failures):
        verifier.state_handler(url, teardown=True, body=True)
        try:
            verifier.verify()
        except RuntimeError:
            text = verifier.output(strip_ansi=True)
            told = text[text.find("Failures:") :]
            raise AssertionError("\n".join((told, *failures))) from None
        finally:
            report_file(f"pacts/{consumer}.txt").write_text(
                verifier.output(strip_ansi=True), encoding="utf-8"
            )
    assert not failures, "\n".join(failures)


@pytest.mark.timeout(300)
@pytest.mark.req("ORCH-2006", partial="the codes that nothing raises yet")
@pytest.mark.req("ORCH-2007", "OC-CTRL-2011", "OC-CTRL-2030", "OC-CTRL-2040")
@pytest.mark.req("OC-CTRL-2020", "OC-CTRL-2021", "OC-CTRL-2022", "OC-CTRL-2023")
@pytest.mark.req("ORCH-2009", partial="the log lines")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
def test_the_data_plane_answers_as_its_consumer_needs(running: Provider) -> None:
    verify(running, "orchqueue_v1")


@pytest.mark.timeout(300)
@pytest.mark.req("ORCH-3096", "OC-CTRL-2001", "OC-CTRL-2004", "OC-CTRL-2060", "OC-CTRL-2061")
@pytest.mark.req("OC-CTRL-2002", partial="that it drains")
@pytest.mark.req("OC-CTRL-2003", partial="that it is atomic")
@pytest.mark.req("ORCH-3044", partial="all but compatible growth and publication of a version")
def test_the_control_plane_answers_as_its_consumer_needs(running: Provider) -> None:
    verify(running, "orchcontrol_v1")
