"""What models there are, in each dialect's shape: answered by the gateway itself, over all Models.

Beside the path of proxied requests. Pure functions of the directory: Models tell what could be served, the pods'
last reports what is loaded.
"""

import re
from datetime import datetime
from typing import Any

from tandem_api.report import ModelReport, ModelState
from tandem_api.status import Artifact
from tandem_gateway.directory import Directory
from tandem_gateway.objects import ModelView

NEVER = "2318-01-01T00:00:00Z"
"""Expiry of what stays loaded for ever; clients of Ollama print it so."""
_EPOCH = "1970-01-01T00:00:00Z"


def openai_models(directory: Directory) -> dict[str, Any]:
    """The body of `GET /v1/models`."""
    return {"object": "list", "data": [openai_model(directory, model) for model in directory.table.models()]}


def openai_model(directory: Directory, model: ModelView) -> dict[str, Any]:
    """One entry, and the body of `GET /v1/models/{id}`."""
    entry: dict[str, Any] = {
        "id": directory.public_name(model),
        "object": "model",
        "created": _unix(model.created),
        "owned_by": model.namespace,
    }
    loaded = _loaded(directory, model)
    if context := _context(loaded) or model.context:
        # The second is vLLM's word, which clients know.
        entry["context_length"] = entry["max_model_len"] = context
    if reason := _context_reason(loaded):
        entry["tandem"] = {"context_reason": reason}
    return entry


def ollama_tags(directory: Directory) -> dict[str, Any]:
    """The body of `GET /api/tags`."""
    return {"models": [_tag(directory, model) for model in directory.table.models()]}


def ollama_ps(directory: Directory) -> dict[str, Any]:
    """The body of `GET /api/ps`: models that are loaded in some pod, the longest-lived first."""
    running = []
    for model in directory.table.models():
        loaded = _loaded(directory, model)
        if not loaded:
            continue
        first = max(loaded, key=lambda report: report.size_bytes)
        running.append(
            {
                **_named(directory, model),
                "size": first.size_bytes,
                "digest": _digest(model, first.artifact),
                "details": _details(first.artifact or model.artifact),
                # In UTC and to the second, so that texts are in the order of the times that they tell.
                "expires_at": max(report.expires_at or NEVER for report in loaded),
                "size_vram": first.size_bytes if "GPU" in first.processor else 0,
                "context_length": _context(loaded) or 0,
                "tandem": {
                    "copies": len(loaded),
                    "slots": sum(report.slots for report in loaded),
                    "busy": sum(report.busy for report in loaded),
                    "queued": sum(report.queued for report in loaded),
                    "context_reason": _context_reason(loaded),
                },
            }
        )
    return {"models": sorted(running, key=lambda entry: str(entry["expires_at"]), reverse=True)}


def _tag(directory: Directory, model: ModelView) -> dict[str, Any]:
    artifact = model.artifact
    return {
        **_named(directory, model),
        "modified_at": model.created or _EPOCH,
        "size": artifact.weight_bytes if artifact else 0,
        "digest": _digest(model, None),
        "details": _details(artifact),
    }


def _named(directory: Directory, model: ModelView) -> dict[str, str]:
    name = directory.public_name(model)
    return {"name": name, "model": name}


def _loaded(directory: Directory, model: ModelView) -> list[ModelReport]:
    reports = []
    for pod in directory.table.pods_of(model):
        held = directory.loads.reports.get(pod.uid)
        entry = held.models.get(model.name) if held and not held.stale else None
        if entry and entry.state is ModelState.LOADED:
            reports.append(entry)
    return reports


def _context(loaded: list[ModelReport]) -> int | None:
    """The least that a copy gives: which copy answers is not the client's choice."""
    return min((report.context_given for report in loaded if report.context_given), default=None)


def _context_reason(loaded: list[ModelReport]) -> str:
    """Why there is less context than was asked for, by the copy with the least; empty where all have what was asked."""
    short = [report for report in loaded if report.context_reason]
    return min(short, key=lambda report: report.context_given).context_reason if short else ""


def _digest(model: ModelView, artifact: Artifact | None) -> str:
    found = artifact or model.artifact
    return found.config_digest if found else ""


def _details(artifact: Artifact | None) -> dict[str, Any]:
    family = _family(artifact.architecture) if artifact else ""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _parameters(artifact.parameters) if artifact and artifact.parameters else "",
        "quantization_level": artifact.dtype if artifact else "",
    }


def _family(architecture: str) -> str:
    """LlamaForCausalLM is of the family llama, BertModel of bert."""
    return re.sub(r"(For[A-Z]\w*|Model)$", "", architecture).lower()


def _parameters(count: int) -> str:
    """As Ollama prints it: 3.2M, 7.6B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _unix(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0
