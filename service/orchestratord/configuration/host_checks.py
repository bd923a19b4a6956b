"""Whether this machine has what a configuration needs: engine adapters, model files and GPUs.

Asked by `serve` and by `config validate` on the machine itself; a file that is checked elsewhere
is judged without it. Invariant: what could never become Ready here is told before the start, not
by a pool that stays Unready (ORCH-3011, ORCH-3030, ORCH-3037).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .findings import Findings, section


@dataclass(frozen=True, slots=True)
class Host:
    """What the composition root knows of this machine.

    `engines` are those with an installed adapter. `model_problem` returns why a model's file is
    not there, or None where it is or where that cannot be said before the launch. `device_problem`
    returns why an entry of a device mask cannot be meant, or None where it can or nobody knows.
    `same_device` tells whether two entries mean one device, or a GPU and an instance of it.
    `can_trace` says whether the packages of the extra `tracing` are installed.
    """

    engines: frozenset[str]
    model_problem: Callable[[str], str | None]
    device_problem: Callable[[str], str | None]
    same_device: Callable[[str, str], bool] = lambda one, other: False
    can_trace: bool = True


def check_host(data: dict[str, Any], host: Host, findings: Findings) -> None:
    """Compare the pools with what this machine has."""
    for index, pool in enumerate(data.get("pools") or []):
        if pool["engine"] not in host.engines:
            known = ", ".join(sorted(host.engines)) or "none"
            rule = f"no adapter for it is installed (there are: {known}); this pool stays Unready"
            findings.warn(("pools", index, "engine"), pool["engine"], rule)
        if _opens_model(pool):
            problem = host.model_problem(pool["model"])
            if problem is not None:
                findings.reject(("pools", index, "model"), pool["model"], problem)
        # An external engine's devices are those of its own host.
        masked = pool.get("launch") is not None
        for number, device in enumerate(pool.get("devices") or [] if masked else []):
            problem = host.device_problem(str(device))
            if problem is not None:
                findings.reject(("pools", index, "devices", number), device, problem)
    _check_shared(data.get("pools") or [], host, findings)
    endpoint = section(data, "tracing").get("endpoint")
    if endpoint is not None and not host.can_trace:
        rule = "needs the packages of the extra tracing: pip install 'llama-orch[tracing]'"
        findings.reject(("tracing", "endpoint"), endpoint, rule)


def _check_shared(pools: list[dict[str, Any]], host: Host, findings: Findings) -> None:
    """What two pools or one name in two ways is one device all the same (ORCH-3011); the same name
    twice is told by whoever checks a file without its host."""
    masked = [
        (index, number, str(device))
        for index, pool in enumerate(pools)
        if pool.get("launch") is not None
        for number, device in enumerate(pool.get("devices") or [])
    ]
    for place, (index, number, name) in enumerate(masked):
        for other, _, theirs in masked[:place]:
            if name == theirs or not host.same_device(name, theirs):
                continue
            silent = [i for i in (other, index) if not pools[i].get("shared_devices", False)]
            if other == index:
                rule = f"is the device that {theirs} names too"
            elif silent:
                names = " and ".join(pools[i]["id"] for i in silent)
                rule = (
                    f"is {theirs} of pool {pools[other]['id']}, which launches engines on it too; "
                    f"where that is meant, set shared_devices: true in {names}"
                )
            else:
                continue
            findings.reject(
                ("pools", index, "devices", number), pools[index]["devices"][number], rule
            )


def _opens_model(pool: dict[str, Any]) -> bool:
    """Whether an engine of ours gets the model's file: a command of one's own may fetch its own."""
    if pool.get("launch") is None:
        return False
    launch = section(pool, "launch")
    words = [*(launch.get("command") or []), *(launch.get("args") or [])]
    return launch.get("command") is None or any("{model}" in word for word in words)
