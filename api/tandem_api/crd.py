"""Makes the CustomResourceDefinition of `Model` from its pydantic types: `python -m tandem_api.crd FILE`.

Runs at development time (`make generate`); the YAML is committed in the chart and a test fails when the two differ.
The API server wants a structural schema: no references, no unions but int-or-string, every object typed.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from tandem_api.model import NAME_PATTERN, ModelSpec, ModelStatus
from tandem_api.names import GROUP, MAX_NAME_LENGTH, VERSION

_KEPT = (
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "required", "anyOf",
)  # fmt: skip

SOURCE_RULE = {
    "rule": "self.source.matches('^(hf|pvc)://.+')",
    "message": "source must begin with hf:// or pvc://",
    "fieldPath": ".source",
}
SOURCE_FORM_RULES = [
    SOURCE_RULE,
    {
        "rule": r"!self.source.startsWith('hf://') || self.source.matches('^hf://[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$')",
        "message": "an hf:// source is hf://organisation/name",
        "fieldPath": ".source",
    },
    {
        "rule": r"!self.source.startsWith('pvc://') || (self.source.matches('^pvc://[a-z0-9]([-a-z0-9]*[a-z0-9])?(/[A-Za-z0-9_.-]+)*$')"
        " && !self.source.contains('/..') && !self.source.contains('/./') && !self.source.endsWith('/.'))",
        "message": "a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. in its path",
        "fieldPath": ".source",
    },
    {
        "rule": "!has(self.revision) || self.source.startsWith('hf://')",
        "message": "revision is for hf:// sources only",
        "fieldPath": ".revision",
    },
    {
        "rule": "type(self.context.length) != int || self.context.minLength <= self.context.length",
        "message": "context.minLength must not be larger than context.length",
        "fieldPath": ".context.minLength",
    },
]
NAME_RULES = [
    {
        "rule": f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
        "message": f"a Model's name has at most {MAX_NAME_LENGTH} characters, so that the names of its objects fit",
    },
    {
        "rule": f"self.metadata.name.matches('{NAME_PATTERN}')",
        "message": "a Model's name has lower-case letters, digits and '-' only, with a letter or digit at both ends",
    },
]


def _column(name: str, path: str, kind: str = "string", priority: int = 0, description: str = "") -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "jsonPath": path, "type": kind}
    if priority:
        column["priority"] = priority
    if description:
        column["description"] = description
    return column


MODEL_COLUMNS = [
    _column(
        "Ready", ".status.conditions[?(@.type=='Ready')].status", description="whether a request sent now is served"
    ),
    _column("Replicas", ".status.readyReplicas", "integer", description="pods that take requests"),
    _column("Size", ".status.size", description="weights and context of one copy"),
    _column("Processor", ".status.processor"),
    _column("Context", ".status.context", "integer", description="tokens that each slot really has"),
    _column("Slots", ".status.slots", description="in use / in all"),
    _column("Until", ".status.until", description="how long the model stays loaded"),
    _column("Queue", ".status.queued", "integer", 1, "requests that wait for a slot"),
    _column("Rejected", ".status.rejected", "integer", 1, "requests refused in the last 5 minutes"),
    _column("Reason", ".status.conditions[?(@.type=='Ready')].reason", priority=1),
    _column("Age", ".metadata.creationTimestamp", "date"),
]


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as the API server wants it.

    References are inlined; `X | None` becomes an optional X; titles and markers of other dialects are dropped.
    """
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        return structural({**target, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return structural({**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}, definitions)
    if "anyOf" in schema and "x-kubernetes-int-or-string" not in schema:
        choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        if len(choices) != 1:
            raise ValueError(f"a structural schema has no place for the union {schema['anyOf']}")
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        return structural({**choices[0], **rest}, definitions)
    result = {key: value for key, value in schema.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if result.get("default", ...) is None:
        del result["default"]
    if "properties" in schema:
        result["properties"] = {name: structural(value, definitions) for name, value in schema["properties"].items()}
    if "items" in schema:
        result["items"] = structural(schema["items"], definitions)
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    return result


def without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no default anywhere: in a status the API server must not invent what nobody observed."""
    bare = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in bare:
        bare["properties"] = {name: without_defaults(value) for name, value in bare["properties"].items()}
    if "items" in bare:
        bare["items"] = without_defaults(bare["items"])
    return bare


def model_crd() -> dict[str, Any]:
    """The CustomResourceDefinition of Model as one object."""
    spec_json = ModelSpec.model_json_schema(by_alias=True)
    status_json = ModelStatus.model_json_schema(by_alias=True, mode="validation")
    spec = structural(spec_json, spec_json.get("$defs", {}))
    spec["x-kubernetes-validations"] = SOURCE_FORM_RULES
    schema = {
        "type": "object",
        "description": "Model is a named set of weights that Tandem serves over OpenAI- and Ollama-compatible HTTP.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": without_defaults(structural(status_json, status_json.get("$defs", {}))),
        },
        "x-kubernetes-validations": NAME_RULES,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"models.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "Model",
                "listKind": "ModelList",
                "plural": "models",
                "singular": "model",
                "categories": ["tandem"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": MODEL_COLUMNS,
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The CustomResourceDefinition as YAML; equal types give equal text."""
    return yaml.safe_dump(model_crd(), sort_keys=False, width=120)


def main() -> None:
    """Writes the CRD to the file that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(crd_yaml())


if __name__ == "__main__":
    main()
