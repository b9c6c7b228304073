"""What the gateway is told by its environment, read once at the start; first on the path of its life."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem_api.names import HEALTH_PORT, HTTP_PORT, INTERNAL_PORT

MEBIBYTE = 1024 * 1024
LOG_FORMATS = ("text", "json")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the variable and says what it should be."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The gateway's settings; times are in seconds, sizes in bytes."""

    master: bytes
    namespace: str = ""
    """The only namespace whose Models are served; empty means all."""
    default_namespace: str = "default"
    host: str = ""
    """Address to listen on; empty means every address of both families."""
    port: int = HTTP_PORT
    internal_port: int = INTERNAL_PORT
    health_port: int = HEALTH_PORT
    pod_http_port: int = HTTP_PORT
    pod_internal_port: int = INTERNAL_PORT
    max_body_bytes: int = 32 * MEBIBYTE
    max_buffered_bytes: int = 256 * MEBIBYTE
    """Request bodies held at once, all together; beyond it requests are refused."""
    max_requests: int = 4096
    """Requests in progress at once; beyond it requests are refused."""
    linger_seconds: float = 2.0
    drain_seconds: float = 570.0
    log_format: str = "text"
    log_level: str = "INFO"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """The settings that `environment` gives; raises SettingsError with a sentence for what cannot be used."""
    log_format = environment.get("TANDEM_LOG_FORMAT", "text").lower()
    if log_format not in LOG_FORMATS:
        raise SettingsError(f"TANDEM_LOG_FORMAT is {log_format!r}; it must be one of {', '.join(LOG_FORMATS)}.")
    log_level = environment.get("TANDEM_LOG_LEVEL", "INFO").upper()
    if log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsError(f"TANDEM_LOG_LEVEL is {log_level!r}; it must be debug, info, warning or error.")

    namespace = environment.get("TANDEM_NAMESPACE", "")
    default_namespace = environment.get("TANDEM_DEFAULT_NAMESPACE") or namespace or "default"
    if namespace and default_namespace != namespace:
        raise SettingsError(
            f"TANDEM_DEFAULT_NAMESPACE is {default_namespace!r}, but only Models of {namespace!r} are served "
            "(TANDEM_NAMESPACE): a bare name would find none."
        )

    def whole(name: str, default: int, low: int, high: int) -> int:
        return _whole(environment, name, default, low, high)

    return Settings(
        master=_master(Path(environment.get("TANDEM_MASTER_SECRET_FILE") or "/etc/tandem/master/key")),
        namespace=namespace,
        default_namespace=default_namespace,
        host=environment.get("TANDEM_GATEWAY_HOST", ""),
        port=whole("TANDEM_GATEWAY_PORT", HTTP_PORT, 0, 65535),
        internal_port=whole("TANDEM_INTERNAL_PORT", INTERNAL_PORT, 0, 65535),
        health_port=whole("TANDEM_HEALTH_PORT", HEALTH_PORT, 0, 65535),
        pod_http_port=whole("TANDEM_POD_HTTP_PORT", HTTP_PORT, 1, 65535),
        pod_internal_port=whole("TANDEM_POD_INTERNAL_PORT", INTERNAL_PORT, 1, 65535),
        max_body_bytes=whole("TANDEM_MAX_BODY_BYTES", 32 * MEBIBYTE, 1, 1024 * MEBIBYTE),
        max_buffered_bytes=whole("TANDEM_MAX_BUFFERED_BYTES", 256 * MEBIBYTE, 1, 1024 * 1024 * MEBIBYTE),
        max_requests=whole("TANDEM_MAX_REQUESTS", 4096, 1, 1_000_000),
        linger_seconds=_seconds(environment, "TANDEM_LINGER_SECONDS", 2.0),
        drain_seconds=_seconds(environment, "TANDEM_DRAIN_SECONDS", 570.0),
        log_format=log_format,
        log_level=log_level,
    )


def _master(file: Path) -> bytes:
    try:
        master = file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"The install master secret cannot be read from {file} ({error.strerror}); TANDEM_MASTER_SECRET_FILE names "
            "the file that the gateway's Secret is mounted at."
        ) from error
    if len(master) < 16:
        raise SettingsError(f"The install master secret in {file} has {len(master)} bytes; it needs at least 16.")
    return master


def _whole(environment: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}; it must be a whole number from {low} to {high}.")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise SettingsError(f"{name} is {text!r}; it must be a number of seconds from 0 to 86400.")
    return value
