"""The catalog: what a pool's pods may load and with which settings, as one JSON file.

Written by the operator into a ConfigMap and mounted into every pod of the pool; read by the serving pod, which only
watches a file and knows no Kubernetes. `tandem serve` makes the same object from its command line.
"""

import hashlib

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.model import ContextSpec, DType, QueueSpec, SamplingDefaults, Scheduling, Slots, Task

ALL_PODS = "*"
"""Key of `Catalog.preload` that speaks of every pod, whatever its name."""


class CatalogModel(Contract):
    """One model that a pod may load; `name` is what requests and reports call it."""

    name: str
    uid: str = ""
    generation: int = 0
    source: str = Field(description="hf://org/name, pvc://claim/folder, or (without Kubernetes) file:///folder")
    revision: str | None = None
    task: Task = Task.AUTO
    aliases: list[str] = Field(default_factory=list)
    context: ContextSpec = ContextSpec()
    slots: Slots = "Auto"
    queue: QueueSpec = QueueSpec()
    scheduling: Scheduling = Scheduling.OVERLAPPED
    dtype: DType = DType.AUTO
    defaults: SamplingDefaults = SamplingDefaults()


class Catalog(Contract):
    """All models of one pool, and which pod loads which of them before it turns ready."""

    revision: str = ""
    namespace: str = ""
    pool: str = ""
    models: list[CatalogModel] = Field(default_factory=list)
    preload: dict[str, list[str]] = Field(default_factory=dict)

    def with_revision(self) -> "Catalog":
        """The same catalog, stamped with a digest of its content (16 hex digits)."""
        bare = self.model_copy(update={"revision": ""})
        return self.model_copy(update={"revision": hashlib.sha256(bare.to_json().encode()).hexdigest()[:16]})

    def to_json(self) -> str:
        """The file's text; equal catalogs give equal bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def preload_of(self, pod_name: str) -> list[str]:
        """Names of the models that `pod_name` loads at its start."""
        return self.preload.get(pod_name, self.preload.get(ALL_PODS, []))

    def find(self, name: str) -> CatalogModel | None:
        """The model that a request means by `name`: its name, an alias, or either without Ollama's `:latest`."""
        for candidate in (name, name.removesuffix(":latest")):
            for model in self.models:
                if candidate == model.name or candidate in model.aliases:
                    return model
        return None
