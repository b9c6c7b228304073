"""Pydantic's JSON schemas as the API server wants them: structural, every object typed, no references.

Between the types and the CustomResourceDefinitions that `crd` makes of them.
"""

from typing import Any

from tandem_api.base import Contract

_KEPT = (
    "type", "format", "description", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "required",
)  # fmt: skip


def schema_of(contract: type[Contract]) -> dict[str, Any]:
    """The structural schema of a contract. Raises ValueError for what such a schema has no place for."""
    schema = contract.model_json_schema(by_alias=True)
    return structural(schema, schema.get("$defs", {}))


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as the API server wants it.

    References are inlined; `X | None` becomes an optional X; titles and markers of other dialects are dropped.
    """
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        return structural({**target, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return structural({**schema["allOf"][0], **{k: v for k, v in schema.items() if k != "allOf"}}, definitions)
    if "anyOf" in schema:
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
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    if isinstance(result.get("default"), dict):
        # Rules are checked against a default before its own fields are filled in, so they stand in it.
        result["default"] = {**_defaults_of(result.get("properties", {})), **result["default"]}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    return result


def _defaults_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: one["default"] for name, one in properties.items() if "default" in one}


def without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no default anywhere: in a status the API server must not invent what nobody observed."""
    bare = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in bare:
        bare["properties"] = {name: without_defaults(value) for name, value in bare["properties"].items()}
    if "items" in bare:
        bare["items"] = without_defaults(bare["items"])
    return bare
