"""CPU lists as the kernel writes them, and in an engine's command line."""

from __future__ import annotations

import pytest

from pool_managerd.cpu_affinity import cpu_list, cpus_in
from pool_managerd.launch_command import engine_command
from pool_managerd.settings import LaunchSettings, PoolSettings


@pytest.mark.parametrize(
    ("cpus", "text"),
    [([0], "0"), ([3, 1, 2, 0], "0-3"), ([0, 1, 8, 10, 11], "0-1,8,10-11"), ([64, 7], "7,64")],
)
def test_a_list_of_cpus_is_written_in_runs_and_read_back(cpus: list[int], text: str) -> None:
    assert cpu_list(cpus) == text
    assert cpus_in(text) == set(cpus)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "0,,2"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        cpus_in(text)


@pytest.mark.req("ORCH-3013", partial="that the engine is bound")
def test_an_engine_on_gpus_is_told_the_cpus_near_them() -> None:
    pool = PoolSettings("a", "llamacpp", "builtin:smollm2", devices=("0",))
    launch = LaunchSettings(command=("llama-server",))

    near = engine_command(pool, launch, "a-0", 9001, cpus=(4, 5, 6, 7))
    anywhere = engine_command(pool, launch, "a-0", 9001)

    assert near[-4:] == ["--cpus", "4-7", "--", "llama-server"]
    assert "--cpus" not in anywhere
