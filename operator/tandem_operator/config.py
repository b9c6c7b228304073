"""The operator's settings: one YAML file that the chart writes, read once at the start.

What concerns serving pods (image, command, environment, further volumes) stands here and not in a Model, so that
whoever may create a Model cannot choose what runs.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from tandem_api.names import INTERNAL_PORT

CONFIG_VARIABLE = "TANDEM_OPERATOR_CONFIG"
MASTER_SECRET_VARIABLE = "TANDEM_MASTER_SECRET_FILE"  # noqa: S105 (the name of a variable)


class ConfigError(Exception):
    """The settings cannot be used; the message says what to change."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


class LogConfig(_Part):
    """Log lines: their form and the lowest level that is written."""

    format: LogFormat = LogFormat.TEXT
    level: str = Field("info", pattern="^(debug|info|warning|error)$")


class ServerConfig(_Part):
    """What every serving pod runs; objects as Kubernetes has them."""

    image: str = Field(min_length=1)
    image_pull_policy: str = Field("IfNotPresent", pattern="^(Always|IfNotPresent|Never)$")
    image_pull_secrets: list[dict[str, Any]] = Field(default_factory=list)
    command: list[str] = Field(default_factory=lambda: ["python3", "-m", "tandem_server"])
    env: list[dict[str, Any]] = Field(default_factory=list)
    extra_volumes: list[dict[str, Any]] = Field(default_factory=list)
    extra_volume_mounts: list[dict[str, Any]] = Field(default_factory=list)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    termination_grace_period_seconds: int = Field(600, ge=1, le=86_400)
    startup_seconds: int = Field(600, ge=10, le=86_400, description="until the front end must answer its health probe")


class ElectionConfig(_Part):
    """Which of several operators leads; see `lease` for what the times mean."""

    enabled: bool = False
    namespace: str = Field("", description="of the Lease")
    name: str = Field("tandem-operator", min_length=1, description="of the Lease")
    lease_seconds: int = Field(15, ge=1, le=3600)
    renew_seconds: float = Field(10.0, gt=0)
    retry_seconds: float = Field(2.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.retry_seconds < self.renew_seconds < self.lease_seconds:
            raise ValueError("retrySeconds must be less than renewSeconds, and that less than leaseSeconds")
        if self.enabled and not self.namespace:
            raise ValueError("an election needs the namespace of its Lease")
        return self


class NetworkPolicyConfig(_Part):
    """The NetworkPolicy of each pool; `extra_from` are peers, as Kubernetes has them, that may reach its pods too."""

    enabled: bool = True
    extra_from: list[dict[str, Any]] = Field(default_factory=list)


class PodTemplateAllows(StrEnum):
    """What the pod template of a ModelPool may do only where it is allowed here."""

    HOST_NAMESPACES = "HostNamespaces"
    HOST_PATH = "HostPath"
    PRIVILEGED = "Privileged"
    SERVICE_ACCOUNT = "ServiceAccount"


class Config(_Part):
    """All settings of the operator."""

    server: ServerConfig
    namespace: str = Field("", description='whose objects it cares for; "" is all namespaces')
    install_namespace: str = Field("", description="where it runs itself")
    election: ElectionConfig = ElectionConfig()
    network_policy: NetworkPolicyConfig = NetworkPolicyConfig()
    pod_template_allows: list[PodTemplateAllows] = Field(default_factory=list)
    workers: int = Field(8, ge=1, le=64, description="reconciles that run at once")
    relist_seconds: float = Field(60.0, gt=0, le=3600)
    gauge_seconds: float = Field(10.0, ge=0, le=600, description="least time between two writes of one Model's gauges")
    report_port: int = Field(INTERNAL_PORT, ge=1, le=65_535)
    health_host: str = "0.0.0.0"  # noqa: S104 (the kubelet probes the pod's address)
    health_port: int = Field(8082, ge=0, le=65_535, description="0 takes a free port")
    log: LogConfig = LogConfig()


def load_config(path: Path) -> Config:
    """Reads the settings; raises ConfigError naming the file and each wrong field."""
    try:
        return Config.model_validate(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the settings file {path} is not YAML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"the settings file {path} is wrong: {wrong}") from error


def load_master_secret(path: Path) -> bytes:
    """Reads the install master secret; raises ConfigError when it is missing or too short for a key."""
    try:
        master = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the master secret {path} cannot be read: {error.strerror or error}") from error
    if len(master) < 16:
        raise ConfigError(f"the master secret {path} has {len(master)} bytes; it needs at least 16")
    return master


def required_path(variable: str) -> Path:
    """The path in an environment variable; raises ConfigError when it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"the environment variable {variable} is not set")
    return Path(value)
