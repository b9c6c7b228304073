"""Builds the Deployment of a pool's serving pods. Pure; a part of `plan`.

The pod meets Pod Security `restricted`: an unprivileged user, no capabilities, a read-only root, no API credentials.
Its contract with the serving pod's process is the environment and the mounted files named here.
"""

import hashlib
from typing import Any

from tandem_api.fields import Device
from tandem_api.names import (
    CACHE_FOLDER,
    CATALOG_FILE,
    CATALOG_FOLDER,
    CLAIMS_FOLDER,
    CREDENTIALS_FOLDER,
    HEALTH_PORT,
    HTTP_PORT,
    INTERNAL_PORT,
    POOL_KEY_FILE,
    POOL_KEY_FOLDER,
)
from tandem_api.pool import CacheSpec, ModelPoolSpec
from tandem_operator.config import ServerConfig
from tandem_operator.kinds import Obj
from tandem_operator.observe import Pool
from tandem_operator.overlay import lay_over

USER_ID = 10001
CONTAINER = "server"
GPU_RESOURCE = "nvidia.com/gpu"


def _claim_volume(claim: str) -> str:
    """Name of the volume of a claim: claims' names may be longer than volumes' and have dots."""
    return f"claim-{hashlib.sha256(claim.encode()).hexdigest()[:10]}"


def _cache_volume(cache: CacheSpec) -> Obj:
    if cache.claim is not None:
        return {"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim}}
    return {"name": "cache", "emptyDir": {} if cache.size_limit is None else {"sizeLimit": cache.size_limit}}


def _volumes(name: str, spec: ModelPoolSpec, server: ServerConfig) -> tuple[list[Obj], list[Obj]]:
    volumes: list[Obj] = [
        {"name": "catalog", "configMap": {"name": name}},
        {"name": "pool-key", "secret": {"secretName": name}},
        # Optional, so that the first Model with credentials does not replace the pods.
        {"name": "credentials", "secret": {"secretName": f"{name}-credentials", "optional": True}},
        {"name": "tmp", "emptyDir": {}},
        _cache_volume(spec.cache),
    ]
    mounts: list[Obj] = [
        # Whole folders, never subPath: the kubelet does not refresh a file that is mounted by subPath.
        {"name": "catalog", "mountPath": CATALOG_FOLDER, "readOnly": True},
        {"name": "pool-key", "mountPath": POOL_KEY_FOLDER, "readOnly": True},
        {"name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a volume of the pod's own)
        {"name": "cache", "mountPath": CACHE_FOLDER},
    ]
    for claim in sorted(volume.claim for volume in spec.volumes):
        volume = _claim_volume(claim)
        volumes.append({"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": volume, "mountPath": f"{CLAIMS_FOLDER}/{claim}", "readOnly": True})
    return volumes + server.extra_volumes, mounts + server.extra_volume_mounts


def _resources(spec: ModelPoolSpec) -> Obj:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if spec.resources.cpu is not None:
        requests["cpu"] = spec.resources.cpu
    if spec.resources.memory is not None:
        requests["memory"] = limits["memory"] = spec.resources.memory
    if spec.device == Device.GPU:
        limits[GPU_RESOURCE] = requests[GPU_RESOURCE] = str(spec.gpus_per_pod)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _environment(spec: ModelPoolSpec, server: ServerConfig) -> list[Obj]:
    values = {
        "TANDEM_CATALOG": f"{CATALOG_FOLDER}/{CATALOG_FILE}",
        "TANDEM_POOL_KEY_FILE": f"{POOL_KEY_FOLDER}/{POOL_KEY_FILE}",
        "TANDEM_DEVICE": spec.device.value,
        "TANDEM_CACHE": CACHE_FOLDER,
        "TANDEM_MAX_QUEUED": str(spec.max_queue),
        "TANDEM_MAX_LOADED": str(spec.max_loaded_models),
        # Ten seconds less than the kubelet gives, so that what still runs is told of the end before it is killed.
        "TANDEM_DRAIN_SECONDS": str(max(10, server.termination_grace_period_seconds - 10)),
        "HF_HOME": f"{CACHE_FOLDER}/huggingface",
        "HOME": "/tmp",  # noqa: S108
        "TMPDIR": "/tmp",  # noqa: S108
    }
    if spec.file_roots:
        values["TANDEM_FILE_ROOTS"] = ":".join(sorted(spec.file_roots))
    own: list[Obj] = [{"name": key, "value": value} for key, value in values.items()]
    own.append({"name": "TANDEM_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    taken = {one["name"] for one in own}
    return own + [one for one in server.env if one["name"] not in taken]


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "health"},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _container(spec: ModelPoolSpec, server: ServerConfig, mounts: list[Obj]) -> Obj:
    container = {
        "name": CONTAINER,
        "image": spec.image or server.image,
        "imagePullPolicy": server.image_pull_policy,
        "command": server.command,
        "env": _environment(spec, server),
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT},
            {"name": "internal", "containerPort": INTERNAL_PORT},
            {"name": "health", "containerPort": HEALTH_PORT},
        ],
        # The front end must answer early; how long weights take to load is the readiness probe's matter alone.
        "startupProbe": _probe("/healthz", 1, server.startup_seconds),
        "readinessProbe": _probe("/readyz", 1, 2),
        "livenessProbe": _probe("/healthz", 10, 6),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The last lines of a crashed container's log become part of the Model's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    resources = _resources(spec)
    return container | ({"resources": resources} if resources else {})


def _pod(name: str, spec: ModelPoolSpec, server: ServerConfig) -> Obj:
    volumes, mounts = _volumes(name, spec, server)
    pod: Obj = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # A pod drains by itself and exits as soon as it is idle; this only bounds the longest answer.
        "terminationGracePeriodSeconds": server.termination_grace_period_seconds,
        "containers": [_container(spec, server, mounts)],
        "volumes": volumes,
    }
    if spec.cache.claim is not None:
        # A shared claim is written by the server's unprivileged user.
        pod["securityContext"] |= {"fsGroup": USER_ID, "fsGroupChangePolicy": "OnRootMismatch"}
    if server.image_pull_secrets:
        pod["imagePullSecrets"] = server.image_pull_secrets
    if server.node_selector:
        pod["nodeSelector"] = server.node_selector
    if server.tolerations:
        pod["tolerations"] = server.tolerations
    return pod


def deployment_spec(pool: Pool, labels: dict[str, str], selector: dict[str, str], server: ServerConfig) -> Obj:
    """The `spec` of a valid pool's Deployment: its ConfigMap and Secret bear the same name.

    The catalog's content is no part of it: a change of the catalog alone reaches pods by the mounted file.
    """
    spec = pool.spec
    if spec is None:
        raise ValueError(f"the {pool.key} is invalid: {pool.invalid}")
    template = {"metadata": {"labels": labels}, "spec": _pod(pool.name, spec, server)}
    rolling = {"maxSurge": spec.rollout.max_surge, "maxUnavailable": spec.rollout.max_unavailable}
    return {
        "replicas": pool.wanted,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 3600,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "selector": {"matchLabels": selector},
        "template": lay_over(template, spec.pod_template),
    }
