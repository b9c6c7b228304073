"""What Ollama's API tells: /, /api/version, /api/tags, /api/ps, /api/show.

On the path of no generation; `ollama ps`, `ollama list` and `ollama show` read these.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from tandem_api import __version__
from tandem_server.generation import model_headers
from tandem_server.http.exchange import encode_json, read_object, validated
from tandem_server.http.ollama_answers import FOREVER
from tandem_server.http.ollama_types import ShowBody
from tandem_server.pod import Pod, size_of, utc_text
from tandem_server.residency.host import ModelHost

GREETING = "Ollama is running"
"""Clients look for exactly this before they talk."""


def _digest(host: ModelHost) -> str:
    """Identifies the checkpoint; before it was ever read, the source that it comes from."""
    if host.checkpoint is not None:
        return host.checkpoint.config_digest
    return hashlib.sha256(f"{host.entry.source}@{host.entry.revision or ''}".encode()).hexdigest()


def _parameters_text(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number) if number else ""


def _details(host: ModelHost) -> dict[str, Any]:
    family = host.checkpoint.family if host.checkpoint is not None else ""
    loaded = host.last_loaded
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _parameters_text(loaded.parameters) if loaded else "",
        "quantization_level": loaded.dtype if loaded else "",
    }


def _tag(pod: Pod, host: ModelHost) -> dict[str, Any]:
    modified = datetime.fromtimestamp(pod.started, UTC).isoformat().replace("+00:00", "Z")
    return {
        "name": host.entry.name,
        "model": host.entry.name,
        "modified_at": modified,
        "size": host.checkpoint.weight_file_bytes if host.checkpoint is not None else 0,
        "digest": _digest(host),
        "details": _details(host),
    }


def _resident(host: ModelHost) -> dict[str, Any]:
    loaded = host.loaded
    assert loaded is not None
    line = host.admission.line
    size = size_of(host)
    return {
        "name": host.entry.name,
        "model": host.entry.name,
        "size": size,
        "digest": _digest(host),
        "details": _details(host),
        "expires_at": FOREVER if host.stay.expires_at is None else utc_text(host.stay.expires_at),
        "size_vram": size if loaded.device_kind == "GPU" else 0,
        "context_length": loaded.context,
        "tandem": {
            "slots": line.slots,
            "busy": len(line.running),
            "queued": len(line.waiting),
            "context_limit": loaded.context_limit,
            "context_reason": loaded.context_reason,
            "device": loaded.device,
            "dtype": loaded.dtype,
        },
    }


def _shown(host: ModelHost) -> dict[str, Any]:
    loaded, checkpoint = host.last_loaded, host.checkpoint
    info: dict[str, Any] = {"general.architecture": checkpoint.family if checkpoint else ""}
    if loaded is not None:
        info["general.parameter_count"] = loaded.parameters
        info[f"{info['general.architecture']}.context_length"] = loaded.context_limit
        if loaded.task == "Embed":
            info[f"{info['general.architecture']}.embedding_length"] = loaded.embedding_size
    told = host.loaded
    return {
        "license": "",
        "modelfile": f"# served by Tandem from {host.entry.source}\nFROM {host.entry.name}\n",
        "parameters": f"num_ctx {told.context}" if told else "",
        "template": checkpoint.template.text if checkpoint and checkpoint.template else "",
        "details": _details(host),
        "model_info": info,
        "capabilities": ["embedding"] if loaded and loaded.task == "Embed" else ["completion"],
        "tandem": {
            "source": host.entry.source,
            "state": host.state.value,
            "context_length": told.context if told else None,
            "context_reason": told.context_reason if told else "",
            "slots": told.slots if told else None,
            "last_error": host.last_error,
        },
    }


def ollama_info_router(pod: Pod) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def greeting() -> PlainTextResponse:
        return PlainTextResponse(GREETING)

    @router.api_route("/api/version", methods=["GET", "HEAD"])
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @router.api_route("/api/tags", methods=["GET", "HEAD"])
    async def tags() -> dict[str, Any]:
        return {"models": [_tag(pod, host) for host in pod.manager.hosts.values()]}

    @router.get("/api/ps")
    async def ps() -> dict[str, Any]:
        return {"models": [_resident(host) for host in pod.manager.hosts.values() if host.loaded is not None]}

    @router.post("/api/show")
    async def show(request: Request) -> Response:
        body = validated(ShowBody, await read_object(request, pod.settings.max_body_bytes))
        host = pod.serving(request, body.wanted)
        return Response(encode_json(_shown(host)), media_type="application/json", headers=model_headers(host))

    return router
