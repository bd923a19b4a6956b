"""Launch profiles: how each engine is started. Requirements: ORCH-3001, ORCH-3012, OC-POOL-3020."""

from __future__ import annotations

from pool_managerd.launch_profiles import llamacpp, tgi, triton, vllm
from pool_managerd.launch_profiles.profile import LaunchProfile, LaunchRefused, LaunchRequest
from pool_managerd.settings import LaunchSettings, PoolSettings

__all__ = ["LaunchProfile", "LaunchRefused", "LaunchRequest", "profile_of", "runs_on_cpu"]

_PROFILES = {
    profile.engine: profile
    for profile in (llamacpp.SERVER, vllm.PROFILE, tgi.PROFILE, triton.PROFILE)
}


def profile_of(pool: PoolSettings, launch: LaunchSettings) -> LaunchProfile:
    """The profile of a pool's engine; of llama.cpp without a program, our own launcher.

    Raises `LaunchRefused` for an engine without one.
    """
    if pool.engine == "llamacpp" and launch.program is None and launch.command is None:
        return llamacpp.CPU_LAUNCHER
    profile = _PROFILES.get(pool.engine)
    if profile is None:
        known = ", ".join(sorted(_PROFILES))
        raise LaunchRefused(f"there is no launch profile for engine {pool.engine!r} ({known})")
    return profile


def runs_on_cpu(pool: PoolSettings, launch: LaunchSettings) -> bool:
    """Whether what would be started runs on the CPU whatever GPUs the host has."""
    profile = None if launch.command is not None else _PROFILES.get(pool.engine)
    return profile is not None and profile_of(pool, launch).on_cpu
