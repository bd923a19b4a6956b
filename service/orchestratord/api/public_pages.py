"""What is served beside the two planes: probes, metrics, the contracts and their documentation."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import swagger_ui_bundle

import orchcontrol_v1
import orchqueue_v1
from orchestratord.api.http_server import Headers

Rendered = tuple[int, Headers, bytes]

_JSON: Headers = [(b"content-type", b"application/json")]
_YAML: Headers = [(b"content-type", b"application/yaml; charset=utf-8")]
_HTML: Headers = [(b"content-type", b"text/html; charset=utf-8")]
_METRICS: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]

_DOCS = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>llama-orch API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head><body><div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/swagger-ui-standalone-preset.js"></script>
<script>SwaggerUIBundle({dom_id: "#ui", layout: "StandaloneLayout",
presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
urls: [{url: "/openapi/data.yaml", name: "OrchQueue v1 (data plane)"},
{url: "/openapi/control.yaml", name: "OrchControl v1 (control plane)"}]})</script></body></html>
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One GET resource; `operation` labels its metric, `public` needs no key."""

    operation: str
    render: Callable[[], Rendered]
    public: bool = True


class PublicPages:
    def __init__(self, ready: Callable[[], tuple[bool, str]], metrics: Callable[[], bytes]) -> None:
        """`ready()` says whether a pool is Ready, and what is missing; `metrics()` renders them."""
        self._ready = ready
        data, control = (
            contract_text().encode()
            for contract_text in (orchqueue_v1.contract_text, orchcontrol_v1.contract_text)
        )
        self._pages = {
            "/livez": Page("livez", lambda: (200, _JSON, b'{"live":true}')),
            "/readyz": Page("readyz", self._readyz),
            "/metrics": Page("metrics", lambda: (200, _METRICS, metrics()), public=False),
            "/openapi/data.yaml": Page("openapi", lambda: (200, _YAML, data)),
            "/openapi/control.yaml": Page("openapi", lambda: (200, _YAML, control)),
            "/docs": Page("docs", lambda: (200, _HTML, _DOCS)),
        }
        for asset in Path(swagger_ui_bundle.swagger_ui_path).iterdir():
            if asset.suffix in (".js", ".css", ".png"):
                self._pages[f"/docs/{asset.name}"] = Page("docs", _file(asset))

    def find(self, path: str) -> Page | None:
        return self._pages.get(path)

    def _readyz(self) -> Rendered:
        ready, why = self._ready()
        if ready:
            return 200, _JSON, b'{"ready":true}'
        headers: Headers = [*_JSON, (b"retry-after", b"1")]
        return 503, headers, b'{"ready":false,"why":"%b"}' % why.encode()


def _file(path: Path) -> Callable[[], Rendered]:
    media_type = (mimetypes.guess_type(path.name)[0] or "application/octet-stream").encode()
    return lambda: (200, [(b"content-type", media_type)], path.read_bytes())
