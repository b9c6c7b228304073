"""The catalog: what a pool's pods may load and with which settings, as one JSON file.

Written by the operator into a ConfigMap and mounted into every pod of the pool; read by the serving pod, which only
watches a file and knows no Kubernetes. `tandem serve` makes the same object from its command line.
"""

import hashlib

from pydantic import ConfigDict, Field

from tandem_api.base import Contract
from tandem_api.model import ModelSettings, ModelSpec

ALL_PODS = "*"
"""Key of `Catalog.preload` that speaks of every pod, whatever its name."""


class CatalogModel(ModelSettings):
    """One model that a pod may load: a Model's settings, under the name that requests and reports call it."""

    model_config = ConfigDict(extra="ignore")

    name: str
    uid: str = ""

    @classmethod
    def of(cls, name: str, uid: str, spec: ModelSpec) -> "CatalogModel":
        """The entry of a Model. What only the operator reads, such as `replicas`, is left out."""
        settings = {field: getattr(spec, field) for field in ModelSettings.model_fields}
        return cls(name=name, uid=uid, **settings)


class Catalog(Contract):
    """All models of one pool, and which pod loads which of them before it turns ready."""

    revision: str = ""
    namespace: str = ""
    pool: str = ""
    models: list[CatalogModel] = Field(default_factory=list)
    preload: dict[str, list[str]] = Field(default_factory=dict)
    credentials: str = Field("", description="digest of the credentials that belong to this revision")

    @classmethod
    def read(cls, text: str | bytes) -> "Catalog":
        """A catalog from its JSON; fields that a newer operator added are ignored at every depth.

        Raises pydantic's ValidationError.
        """
        return cls.model_validate_json(text, extra="ignore")

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

    def entry(self, name: str) -> CatalogModel | None:
        """The model of exactly this name."""
        return next((model for model in self.models if model.name == name), None)

    def find(self, name: str) -> CatalogModel | None:
        """The model that a request means by `name`: its name, an alias, or either without Ollama's `:latest`."""
        for candidate in (name, name.removesuffix(":latest")):
            for model in self.models:
                if candidate == model.name or candidate in model.aliases:
                    return model
        return None
