"""A service that somebody else runs, as the stage of scenarios that only use it.

Stands where `bdd.stage` stands when `bdd_runner` plays the scenarios: the people have its one key,
and every pool of a scenario is the one model that it serves. Invariants: nothing is configured,
stopped or restarted; a step that would need that fails by `NeedsOwnService`, it never passes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from bdd.stage import Model, NeedsOwnService, Scenery, Wanted
from harness_kit.http_probe import Answer, HttpProbe, ProbeError

# Somebody's service far away may be slow to answer, and shall not hang the run.
TIMEOUT_S = 60.0


class LiveServiceError(Exception):
    """The service cannot be used: the message says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where it listens, over plain HTTP."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Address:
        """Read `http://HOST[:PORT]`. Raises LiveServiceError for anything else."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise LiveServiceError(f"{url}: {error}") from None
        if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
            raise LiveServiceError(
                f"{url}: it must look like http://127.0.0.1:8080, without a path; "
                "a service behind TLS is reached through a tunnel"
            )
        return cls(host, port)


@dataclass(frozen=True, slots=True)
class LiveService:
    """An address, the key to it, and the model that the scenarios ask for."""

    address: Address
    key: str | None = field(repr=False)
    model: Model

    def connect(self, who: str) -> HttpProbe:
        """A connection of that person. Raises NeedsOwnService for those it has no key for."""
        keys = {
            "acme": self.key,
            "the operator": self.key,
            "the scraper": self.key,
            "a stranger": "no-such-key",
            "nobody": None,
        }
        if who not in keys:
            raise NeedsOwnService(f"{who} has no key here")
        return _probe(self.address, keys[who])


class LiveStage:
    """The same service for every scenario."""

    def __init__(self, service: LiveService) -> None:
        self._service = service

    def set(self, wanted: Wanted) -> Scenery:
        """Whatever is wanted: raises NeedsOwnService unless any model will do."""
        for pool, described in wanted.pools.items():
            if not described.any_model:
                raise NeedsOwnService(f"pool {pool} is a configuration of its own")
        if wanted.sections:
            raise NeedsOwnService(f"section {', '.join(wanted.sections)} is configured")
        models = dict.fromkeys(wanted.pools, self._service.model)
        return Scenery(self._service.connect, models)

    def tidy(self) -> None:
        """Nothing is left: a journey cancels what it did not read to its end."""


# In the configuration of a pytest run: the service that its scenarios use.
LIVE = pytest.StashKey[LiveService]()


def find_service(
    address: Address, key: str | None, engine: str | None, model_ref: str | None
) -> LiveService:
    """Ask a service what it serves: `engine` and `model_ref`, or the first that completes text.

    Raises:
        LiveServiceError: nobody answers, or somebody else; the key is refused; there is no model.
    """
    answer = _ask(address, key, "/v1/capabilities")
    if answer.status == 401:
        raise LiveServiceError("the service wants a key: --api-key-env names the variable it is in")
    if answer.status == 403:
        raise LiveServiceError(
            "the service does not take this key: is it the right one, and has it the role data?"
        )
    try:
        engines: list[dict[str, Any]] = answer.json()["engines"]
        offered = [
            Model(str(each["engine"]), str(ref))
            for each in engines
            if "completion" in each.get("supported_workloads", ["completion"])
            for ref in each.get("model_refs", [model_ref] if model_ref else [])
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise LiveServiceError(
            f"GET /v1/capabilities gives {answer.status}, and not what a llama-orch service says"
        ) from None
    for model in offered:
        if engine in (None, model.engine) and model_ref in (None, model.ref):
            return LiveService(address, key, model)
    wanted = " ".join(word for word in (engine, model_ref) if word) or "a model that completes text"
    shown = ", ".join(f"{model.engine} {model.ref}" for model in offered) or "nothing"
    raise LiveServiceError(f"the service does not serve {wanted}; it serves {shown}")


def _ask(address: Address, key: str | None, path: str) -> Answer:
    try:
        with _probe(address, key) as probe:
            return probe.get(path)
    except OSError as error:
        raise LiveServiceError(
            f"nobody answers at http://{address.host}:{address.port}: {error.strerror or error}; "
            "is the service running there?"
        ) from None
    except (ProbeError, ValueError, LookupError, json.JSONDecodeError) as error:
        raise LiveServiceError(
            f"what answers at http://{address.host}:{address.port} is no HTTP service: {error}"
        ) from None


def _probe(address: Address, key: str | None) -> HttpProbe:
    return HttpProbe(address.port, key, TIMEOUT_S, address.host)
