"""What a JSON Schema cannot say: names that must agree, numbers that must fit one another.

Works on data the schema accepted, before the types are built, because a finding needs the path to
its line. Problems stop the start; warnings are advice. (ORCH-3030, OC-CLI-8003, ORCH-3012,
ORCH-3011, ORCH-3045)
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .document import Document
from .findings import ABSENT, Findings, section
from .host_checks import Host, check_host
from .not_yet import warn_of_not_yet
from .otlp_headers import otlp_headers
from .problems import Path, Problem, key_of

# contracts: a configuration without `sampler_profiles` has exactly this one.
_DEFAULT_SAMPLER_PROFILE = "v1"
# orchestratord.api.keys writes it so; a key that can never match is a mistake to tell at the start.
_KEY_HMAC = re.compile(r"v1:(?:[0-9a-f]{2})+:[0-9a-f]{64}\Z")
# 16 random characters of base64 are 96 bits; what people type is far below that.
_KEY_CHARACTERS_MIN = 16
# Their launch profiles share every tensor over all devices alike.
_EVEN_SPLITS = frozenset(("vllm", "tgi"))


def check_values(
    data: dict[str, Any], document: Document, environ: Mapping[str, str], host: Host | None
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Return (problems, warnings) of data that its schema accepted.

    Without `host` the machine is not looked at.
    """
    findings = Findings(document)
    _check_server(data, findings)
    _check_keys(data, environ, findings)
    _check_tracing(section(data, "tracing"), environ, findings)
    pools = data.get("pools") or []
    _check_unique(((("pools", i, "id"), pool["id"]) for i, pool in enumerate(pools)), findings)
    for index, pool in enumerate(pools):
        _check_pool(data, pool, ("pools", index), findings)
    _check_canary_names(pools, findings)
    _check_devices(pools, findings)
    _check_tenants(data, pools, findings)
    if host is not None:
        check_host(data, host, findings)
    warn_of_not_yet(data, findings)
    if not pools:
        findings.warn(("pools",), ABSENT, "no pool: every task will answer POOL_UNAVAILABLE")
    return tuple(findings.problems), tuple(findings.warnings)


def _check_unique(places: Iterable[tuple[Path, Any]], findings: Findings) -> None:
    first: dict[Any, Path] = {}
    for path, value in places:
        if value in first:
            findings.reject(path, value, f"already used by {key_of(first[value])}")
        else:
            first[value] = path


def _check_server(data: dict[str, Any], findings: Findings) -> None:
    server = section(data, "server")
    control_port = server.get("control_port")
    if control_port and control_port == server.get("port", 8080):
        rule = "must differ from server.port; null serves both planes on one port"
        findings.reject(("server", "control_port"), control_port, rule)
    if section(data, "platform").get("cpu_carve_out"):
        rule = "inference on CPU is for demos and CI only (ORCH-1101)"
        findings.warn(("platform", "cpu_carve_out"), True, rule)
    sync = section(data, "journal").get("sync", "full")
    if sync != "full":
        rule = "a power cut can lose tasks that were already answered with 202"
        findings.warn(("journal", "sync"), sync, rule)


def _check_keys(data: dict[str, Any], environ: Mapping[str, str], findings: Findings) -> None:
    auth = section(data, "auth")
    keys = auth.get("keys") or []
    if not auth.get("enabled", True):
        findings.warn(("auth", "enabled"), False, "everyone who reaches the port may do everything")
        return
    if not keys:
        rule = "add a key, or set auth.enabled: false (only on a machine nobody else reaches)"
        findings.reject(("auth", "keys"), ABSENT, rule)
    _check_unique(((("auth", "keys", i, "id"), key["id"]) for i, key in enumerate(keys)), findings)
    named: list[tuple[Path, Any]] = []
    for index, key in enumerate(keys):
        path: Path = ("auth", "keys", index)
        sources = [name for name in ("key_env", "key_hmac") if key.get(name)]
        if len(sources) != 1:
            findings.reject(path, ABSENT, "needs exactly one of key_env / key_hmac")
            continue
        if sources == ["key_env"]:
            variable = key["key_env"]
            named.append(((*path, "key_env"), variable))
            value = environ.get(variable)
            if not value:
                rule = "this environment variable is not set; it must hold the key"
                findings.reject((*path, "key_env"), variable, rule)
            elif len(value) < _KEY_CHARACTERS_MIN:
                rule = (
                    f"the key in it has fewer than {_KEY_CHARACTERS_MIN} characters and can be "
                    "guessed; `llama-orch keys hash --generate` makes a good one"
                )
                findings.warn((*path, "key_env"), variable, rule)
        elif not _KEY_HMAC.match(key["key_hmac"]):
            rule = "is not what `llama-orch keys hash` prints (v1:SALT:MAC, hexadecimal)"
            findings.reject((*path, "key_hmac"), key["key_hmac"], rule)
    _check_unique(named, findings)


def _check_tracing(tracing: dict[str, Any], environ: Mapping[str, str], findings: Findings) -> None:
    variable = tracing.get("headers_env")
    if variable is None:
        return
    place: Path = ("tracing", "headers_env")
    try:
        otlp_headers(environ[variable])
    except KeyError:
        findings.reject(place, variable, "this environment variable is not set")
    except ValueError as error:
        findings.reject(place, variable, f"this environment variable {error}")


def _check_pool(data: dict[str, Any], pool: dict[str, Any], path: Path, findings: Findings) -> None:
    replicas = pool.get("replicas") or []
    launch = pool.get("launch")
    if not replicas and launch is None and not pool.get("managed"):
        rule = (
            "needs replicas (engines that run already) or launch (engines we start), or managed: "
            "true where pool managers bring them"
        )
        findings.reject(path, ABSENT, rule)
    places = [((*path, "replicas", i, "id"), replica["id"]) for i, replica in enumerate(replicas)]
    _check_unique(places, findings)
    urls = [((*path, "replicas", i, "url"), replica["url"]) for i, replica in enumerate(replicas)]
    _check_unique(urls, findings)
    # The pool host names the engines it launches `<pool>-<n>`.
    launched = {f"{pool['id']}-{n}" for n in range((launch or {}).get("count", 1))}
    for place, name in places:
        if launch is not None and name in launched:
            rule = f"is the name of an engine that pools[{path[1]}].launch starts; take another"
            findings.reject(place, name, rule)
    carve_out = section(data, "platform").get("cpu_carve_out", False)
    if launch is not None and not pool.get("devices") and not carve_out:
        rule = "launched engines need GPUs; CPU takes platform.cpu_carve_out: true (ORCH-1101)"
        findings.warn((*path, "devices"), ABSENT, rule)
    _check_profile(data, pool, path, findings)
    _check_split(pool, path, findings)
    _check_priorities(pool, path, findings)
    _check_breaker(data, pool, path, findings)
    timeouts = section(pool, "timeouts")
    wall_ms, idle_ms = timeouts.get("wall_ms", 60000), timeouts.get("idle_ms", 5000)
    if idle_ms > wall_ms:
        rule = f"is over wall_ms ({wall_ms}) and so never decides"
        findings.warn((*path, "timeouts", "idle_ms"), idle_ms, rule)


def _check_profile(
    data: dict[str, Any], pool: dict[str, Any], path: Path, findings: Findings
) -> None:
    profiles = section(data, "sampler_profiles") or {_DEFAULT_SAMPLER_PROFILE: {}}
    version = pool.get("sampler_profile_version")
    if version is None or version in profiles:
        return
    close = difflib.get_close_matches(version, profiles, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(profiles))}"
    findings.reject((*path, "sampler_profile_version"), version, f"no such sampler profile{hint}")


def _check_split(pool: dict[str, Any], path: Path, findings: Findings) -> None:
    devices, split = pool.get("devices") or [], pool.get("tensor_split")
    repeated = [device for device, count in Counter(map(str, devices)).items() if count > 1]
    if repeated:
        rule = f"names device {repeated[0]} twice"
        findings.reject((*path, "devices"), devices, rule)
    if split and len(split) != len(devices):
        rule = (
            f"needs one ratio per device: {len(split)} ratios, {len(devices)} devices (ORCH-3012)"
        )
        findings.reject((*path, "tensor_split"), split, rule)
    if pool.get("launch") is None:
        return  # how engines of others split their model is theirs to know
    if len(devices) > 1 and not split and not pool.get("homogeneous", False):
        rule = (
            f"needs one ratio per device, or homogeneous: true where the {len(devices)} devices "
            "are alike (ORCH-3012)"
        )
        findings.reject((*path, "tensor_split"), ABSENT, rule)
    command = section(pool, "launch").get("command")
    if split and len(set(split)) > 1 and command is None and pool["engine"] in _EVEN_SPLITS:
        rule = f"must be equal: {pool['engine']} shares tensors evenly only (ORCH-3012)"
        findings.reject((*path, "tensor_split"), split, rule)


def _check_priorities(pool: dict[str, Any], path: Path, findings: Findings) -> None:
    admission = section(pool, "admission")
    priorities = admission.get("priorities") or []
    place: Path = (*path, "admission", "priorities")
    names = [((*place, i, "name"), priority["name"]) for i, priority in enumerate(priorities)]
    _check_unique(names, findings)
    capacity = section(pool, "queue").get("capacity", 256)
    total = sum(priority.get("queue_capacity") or 0 for priority in priorities)
    if total > capacity:
        rule = f"is less than the priorities' queue_capacity together ({total}): it decides first"
        findings.warn((*path, "queue", "capacity"), capacity, rule)


def _check_breaker(
    data: dict[str, Any], pool: dict[str, Any], path: Path, findings: Findings
) -> None:
    """Only objectives of interactive tasks open a circuit breaker (ORCH-3040)."""
    if not section(section(pool, "admission"), "circuit_breaker").get("enabled"):
        return
    goals = section(section(data, "slos"), "interactive")
    names = ("first_token_p95_ms", "tokens_64_p95_ms", "error_ratio")
    if all(name in goals and goals[name] is None for name in names):
        place: Path = (*path, "admission", "circuit_breaker", "enabled")
        findings.warn(place, True, "never opens: every objective in slos.interactive is null")


def _check_canary_names(pools: list[dict[str, Any]], findings: Findings) -> None:
    """A canary is a pool of its own while it lasts; its name is its pool's with a suffix."""
    names = {pool["id"] for pool in pools}
    for index, pool in enumerate(pools):
        name, _, suffix = pool["id"].rpartition(".")
        if suffix == "canary" and name in names:
            rule = f"is what a canary of pool {name} is called; take another name"
            findings.reject(("pools", index, "id"), pool["id"], rule)


def _check_devices(pools: list[dict[str, Any]], findings: Findings) -> None:
    """Two pools that launch engines on one device compete for its memory: both must say that they
    share it (ORCH-3011, ORCH-3003)."""
    owners: dict[str, list[int]] = {}
    for index, pool in enumerate(pools):
        if pool.get("launch") is None:
            continue
        for number, device in enumerate(pool.get("devices") or []):
            others = owners.setdefault(str(device), [])
            if index in others:
                continue  # a mask that names it twice is told elsewhere
            place: Path = ("pools", index, "devices", number)
            silent = [i for i in (*others, index) if not pools[i].get("shared_devices", False)]
            if others and silent:
                names = " and ".join(pools[i]["id"] for i in silent)
                rule = (
                    f"pool {pools[others[0]]['id']} launches engines on this device too; where "
                    f"that is meant, set shared_devices: true in {names}"
                )
                findings.reject(place, device, rule)
            elif others:
                rule = f"shared with pool {pools[others[0]]['id']}; both must fit its memory"
                findings.warn(place, device, rule)
            others.append(index)


def _check_tenants(data: dict[str, Any], pools: list[dict[str, Any]], findings: Findings) -> None:
    auth = section(data, "auth")
    known = {key["tenant"] for key in auth.get("keys") or []}
    budget = section(section(data, "sessions"), "budgets").get("tokens")
    for index, pool in enumerate(pools):
        place: Path = ("pools", index, "admission", "fairness", "tenants")
        tenants = section(section(pool, "admission"), "fairness").get("tenants") or []
        _check_unique((((*place, i, "id"), t["id"]) for i, t in enumerate(tenants)), findings)
        for number, tenant in enumerate(tenants):
            if auth.get("enabled", True) and tenant["id"] not in known:
                rule = "no key in auth.keys belongs to this tenant"
                findings.warn((*place, number, "id"), tenant["id"], rule)
        if budget is not None and budget < pool["ctx"]:
            rule = f"is under pool {pool['id']}'s ctx ({pool['ctx']}): one full task is refused"
            findings.warn(("sessions", "budgets", "tokens"), budget, rule)
