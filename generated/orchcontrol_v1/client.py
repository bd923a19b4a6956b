# Written by `python -m orch_tools regen` from contracts/openapi/control.yaml; edit that instead.
"""Typed clients of `contracts/openapi/control.yaml`.

`AsyncOrchControlClient` for asyncio, `OrchControlClient` for threads; the same methods.
Each raises `OrchError` and nothing else when the service refuses or cannot be reached;
only what is `retriable` is worth another try (ORCH-3025). `observe` sees the head of
each answer, where the `X-Budget-*` headers are.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import msgspec

from orchqueue_v1.transport import (
    DEFAULT_TIMEOUT_S,
    Endpoint,
    Observer,
    OrchError,
    Request,
    SyncTransport,
    decode,
    path_of,
)
from orchcontrol_v1.types import (
    Artifact,
    ArtifactRef,
    Capabilities,
    CatalogModel,
    ConfigChange,
    ConfigReloadRequest,
    ConfigState,
    CordonRequest,
    Devices,
    DrainRequest,
    ModelStateRequest,
    PoolHealth,
    PoolManager,
    PoolManagerLease,
    PoolManagerReport,
    ReloadRequest,
    ReplicaSet,
)

__all__ = ["AsyncOrchControlClient", "OrchControlClient", "OrchError"]


def _headers(correlation_id: str | None) -> dict[str, str]:
    return {"X-Correlation-Id": correlation_id} if correlation_id else {}


class AsyncOrchControlClient:
    """Client of control.yaml (asyncio).

    Args: `url` like http://127.0.0.1:8080; `timeout_s` bounds one call, not a stream.
    Raises: ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        observe: Observer | None = None,
    ) -> None:
        # Imported here: who needs no event loop shall not pay for aiohttp.
        from orchqueue_v1.async_transport import AsyncTransport

        self._transport = AsyncTransport(Endpoint(url, api_key), timeout_s, observe)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open; the client can be used again."""
        await self._transport.close()

    async def register_model(
        self, body: CatalogModel, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """Enter a model into the catalog. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), CatalogModel)

    async def get_model(
        self, catalog_id: str, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """A catalog entry. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/catalog/models/{}", catalog_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), CatalogModel)

    async def verify_model(
        self, catalog_id: str, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """Verify a model again. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models/{}/verify", catalog_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), CatalogModel)

    async def set_model_state(
        self, catalog_id: str, body: ModelStateRequest, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """Move a model along its life cycle. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models/{}/state", catalog_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), CatalogModel)

    async def drain_pool(
        self, pool_id: str, body: DrainRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Finish what runs, take no more. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/drain", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def reload_pool(
        self, pool_id: str, body: ReloadRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Switch a pool to another model. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/reload", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def pool_health(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """How a pool is. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/pools/{}/health", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def cordon_pool(
        self, pool_id: str, body: CordonRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Give a pool or a replica no new work. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/cordon", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def resume_pool(
        self, pool_id: str, body: CordonRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Lift a cordon or a drain. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/resume", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def promote_pool(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """Give a canary all of the traffic. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/promote", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def rollback_pool(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """Back to the model before the last reload. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/rollback", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolHealth)

    async def list_pool_managers(self, *, correlation_id: str | None = None) -> list[PoolManager]:
        """Pool managers that are registered. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/pool-managers"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), list[PoolManager])

    async def register_pool_manager(
        self, pool_manager_id: str, body: PoolManagerReport, *, correlation_id: str | None = None
    ) -> PoolManagerLease:
        """Register a pool manager, and its heartbeat. Raises `OrchError`."""
        request = Request(
            "PUT",
            path_of("/v1/pool-managers/{}", pool_manager_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolManagerLease)

    async def deregister_pool_manager(
        self, pool_manager_id: str, *, correlation_id: str | None = None
    ) -> PoolManager:
        """A pool manager goes. Raises `OrchError`."""
        request = Request(
            "DELETE",
            path_of("/v1/pool-managers/{}", pool_manager_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), PoolManager)

    async def get_config(self, *, correlation_id: str | None = None) -> ConfigState:
        """The configuration that is in force. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/config"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), ConfigState)

    async def reload_config(
        self, body: ConfigReloadRequest, *, correlation_id: str | None = None
    ) -> ConfigChange:
        """Read the configuration file again. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/config/reload"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), ConfigChange)

    async def revert_config(self, *, correlation_id: str | None = None) -> ConfigChange:
        """Back to the configuration before the last reload. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/config/revert"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), ConfigChange)

    async def list_devices(self, *, correlation_id: str | None = None) -> Devices:
        """GPUs as they are now. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/devices"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), Devices)

    async def list_replicasets(self, *, correlation_id: str | None = None) -> list[ReplicaSet]:
        """Replica sets with load, slots and SLO snapshots. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/replicasets"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), list[ReplicaSet])

    async def get_capabilities(self, *, correlation_id: str | None = None) -> Capabilities:
        """What this deployment offers. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/capabilities"),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), Capabilities)

    async def create_artifact(
        self, body: Artifact, *, correlation_id: str | None = None
    ) -> ArtifactRef:
        """Keep an artifact. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/artifacts"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), ArtifactRef)

    async def get_artifact(
        self, artifact_id: str, *, correlation_id: str | None = None
    ) -> Artifact:
        """Read an artifact. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/artifacts/{}", artifact_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), Artifact)


class OrchControlClient:
    """Client of control.yaml (blocking; any thread may use it).

    Args: `url` like http://127.0.0.1:8080; `timeout_s` bounds one call, not a stream.
    Raises: ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        observe: Observer | None = None,
    ) -> None:
        self._transport = SyncTransport(Endpoint(url, api_key), timeout_s, observe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; the client can be used again."""
        self._transport.close()

    def register_model(
        self, body: CatalogModel, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """Enter a model into the catalog. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), CatalogModel)

    def get_model(self, catalog_id: str, *, correlation_id: str | None = None) -> CatalogModel:
        """A catalog entry. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/catalog/models/{}", catalog_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), CatalogModel)

    def verify_model(self, catalog_id: str, *, correlation_id: str | None = None) -> CatalogModel:
        """Verify a model again. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models/{}/verify", catalog_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), CatalogModel)

    def set_model_state(
        self, catalog_id: str, body: ModelStateRequest, *, correlation_id: str | None = None
    ) -> CatalogModel:
        """Move a model along its life cycle. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/catalog/models/{}/state", catalog_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), CatalogModel)

    def drain_pool(
        self, pool_id: str, body: DrainRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Finish what runs, take no more. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/drain", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def reload_pool(
        self, pool_id: str, body: ReloadRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Switch a pool to another model. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/reload", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def pool_health(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """How a pool is. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/pools/{}/health", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def cordon_pool(
        self, pool_id: str, body: CordonRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Give a pool or a replica no new work. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/cordon", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def resume_pool(
        self, pool_id: str, body: CordonRequest, *, correlation_id: str | None = None
    ) -> PoolHealth:
        """Lift a cordon or a drain. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/resume", pool_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def promote_pool(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """Give a canary all of the traffic. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/promote", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def rollback_pool(self, pool_id: str, *, correlation_id: str | None = None) -> PoolHealth:
        """Back to the model before the last reload. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/pools/{}/rollback", pool_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolHealth)

    def list_pool_managers(self, *, correlation_id: str | None = None) -> list[PoolManager]:
        """Pool managers that are registered. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/pool-managers"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), list[PoolManager])

    def register_pool_manager(
        self, pool_manager_id: str, body: PoolManagerReport, *, correlation_id: str | None = None
    ) -> PoolManagerLease:
        """Register a pool manager, and its heartbeat. Raises `OrchError`."""
        request = Request(
            "PUT",
            path_of("/v1/pool-managers/{}", pool_manager_id),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolManagerLease)

    def deregister_pool_manager(
        self, pool_manager_id: str, *, correlation_id: str | None = None
    ) -> PoolManager:
        """A pool manager goes. Raises `OrchError`."""
        request = Request(
            "DELETE",
            path_of("/v1/pool-managers/{}", pool_manager_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), PoolManager)

    def get_config(self, *, correlation_id: str | None = None) -> ConfigState:
        """The configuration that is in force. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/config"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), ConfigState)

    def reload_config(
        self, body: ConfigReloadRequest, *, correlation_id: str | None = None
    ) -> ConfigChange:
        """Read the configuration file again. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/config/reload"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), ConfigChange)

    def revert_config(self, *, correlation_id: str | None = None) -> ConfigChange:
        """Back to the configuration before the last reload. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/config/revert"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), ConfigChange)

    def list_devices(self, *, correlation_id: str | None = None) -> Devices:
        """GPUs as they are now. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/devices"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), Devices)

    def list_replicasets(self, *, correlation_id: str | None = None) -> list[ReplicaSet]:
        """Replica sets with load, slots and SLO snapshots. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/replicasets"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), list[ReplicaSet])

    def get_capabilities(self, *, correlation_id: str | None = None) -> Capabilities:
        """What this deployment offers. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/capabilities"),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), Capabilities)

    def create_artifact(self, body: Artifact, *, correlation_id: str | None = None) -> ArtifactRef:
        """Keep an artifact. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/artifacts"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), ArtifactRef)

    def get_artifact(self, artifact_id: str, *, correlation_id: str | None = None) -> Artifact:
        """Read an artifact. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/artifacts/{}", artifact_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), Artifact)
