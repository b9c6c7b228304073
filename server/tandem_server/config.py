"""Settings of a serving pod, read once at the start: from the environment in Kubernetes, by `tandem serve` otherwise.

Every setting is `TANDEM_<NAME>`; the operator writes them into the pod template. A wrong one ends the start with one
sentence that names it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tandem_api import names
from tandem_api.fields import Device
from tandem_api.scalars import memory_bytes

PREFIX = "TANDEM_"


class SettingsError(Exception):
    """A setting that cannot be used, told in one sentence."""


def _parted(value: object) -> object:
    return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value


def _sizes(value: object) -> object:
    """Sizes parted by commas, as bytes."""
    return tuple(memory_bytes(part) for part in value.split(",")) if isinstance(value, str) else value


FileRoots = Annotated[tuple[Path, ...], BeforeValidator(_parted)]

DeviceMemory = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_sizes)]


class Settings(BaseModel):
    """How one serving pod runs. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: Path = Path(names.CATALOG_FOLDER) / names.CATALOG_FILE
    pool_key_file: Path | None = Field(None, description="file with the pool key; None: nobody is asked for a key")
    pod_name: str = "local"
    device: Device = Field(Device.GPU, description="never chosen silently: CPU only where CPU was asked for")
    device_memory: DeviceMemory = Field(
        (),
        description="memory of each device that runners may take, parted by commas, such as 20GiB,20GiB; of a CPU each "
        "entry is a device of its own; none: all that there is",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a runner; None: as many as the pod may use")
    log_format: Literal["text", "json"] = "text"

    host: str = "0.0.0.0"  # noqa: S104 - inside a pod, behind the pool key
    http_port: int = Field(names.HTTP_PORT, ge=0, le=65_535)
    internal_port: int = Field(names.INTERNAL_PORT, ge=0, le=65_535)
    health_port: int = Field(names.HEALTH_PORT, ge=0, le=65_535)

    claims_folder: Path = Path(names.CLAIMS_FOLDER)
    cache: Path = Path(names.CACHE_FOLDER)
    run_folder: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()), description="for private sockets")
    file_roots: FileRoots = Field((), description="file:// sources must lie below one of them; parted by colons")
    credentials: Path = Field(Path(names.CREDENTIALS_FOLDER), description="files NAME.KEY of the models' credentials")

    linger_seconds: float = Field(2.0, ge=0, le=60, description="served on after SIGTERM, while routers notice")
    drain_seconds: float = Field(300.0, gt=0, le=86_400, description="from SIGTERM until running requests are cut off")
    load_stall_seconds: float = Field(300.0, gt=0, le=86_400, description="a load without progress for so long failed")
    stall_seconds: float = Field(300.0, gt=0, le=86_400, description="a busy runner silent for so long is ended")
    wedge_seconds: float = Field(20.0, gt=0, le=86_400, description="the same, for one that uses no CPU meanwhile")
    heartbeat_seconds: float = Field(12.0, gt=0, le=86_400, description="a runner without a heartbeat is ended")
    stop_seconds: float = Field(5.0, gt=0, le=600, description="between SIGTERM and SIGKILL for a runner")
    kill_seconds: float = Field(15.0, gt=0, le=600, description="a killed runner not gone by then is given up")
    abort_seconds: float = Field(30.0, gt=0, le=3_600, description="a runner that takes longer to abort is ended")
    backoff_seconds: float = Field(0.5, gt=0, le=60, description="wait before the first restart; doubles up to 60")
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_queued: int = Field(8192, ge=1, description="requests that may wait in the whole pod, over all models")

    max_loaded: int = Field(0, ge=0, le=1000, description="models that are loaded at once; 0: three a device")
    one_user: bool = Field(False, description="every caller decides for all, as under Ollama: keep_alive, num_ctx")

    runner_entry: str = "tandem_server.engine.runner:main"
    runner_preload: tuple[str, ...] = ("torch", "tandem_server.engine.runner")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads `TANDEM_*`. Raises SettingsError naming the variable and what it must be."""
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if environment.get(PREFIX + name.upper(), "") != "" and name not in ("runner_entry", "runner_preload")
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            variable = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(f"{variable}={first['input']!r} cannot be used: {first['msg']}.") from error
