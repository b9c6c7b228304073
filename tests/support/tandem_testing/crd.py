"""What the API server takes and refuses of the custom resources, field by field; used by the tests of both kinds.

A table in the test names values that a field just takes and just refuses. From the schema follows in which words the
server must refuse them, and whether the table speaks of every bound that the schema has.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tandem_api.crd import CustomKind, crd_of
from tandem_api.names import API_VERSION
from tandem_testing.kube import Kube, Obj

BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "pattern", "enum", "maxItems", "maxProperties")
_NOT_CHECKED = "some validation rules were not checked because the object was invalid"


@dataclass(frozen=True)
class Values:
    """Values of one field: `good` are taken, `bad` refused. `beside` is the rest of the spec that they need.

    `also` are refusals by a rule that some bad value brings with it.
    """

    good: list[Any]
    bad: list[Any] = field(default_factory=list)
    beside: Obj = field(default_factory=dict)
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ruled:
    """A spec that just keeps a rule, one that just breaks it, and all that the API server says to that."""

    good: Obj
    bad: Obj
    told: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One kind under test.

    Attributes:
        least: the smallest valid spec.
        valid: specs that together set every field.
        fields: by path, values that a field just takes and just refuses.
        rules: what fields must be to each other.
        missing: by path of a required field, a spec without it and what is told.
    """

    kind: CustomKind
    namespace: str
    least: Obj
    valid: dict[str, Obj]
    fields: dict[str, Values]
    rules: dict[str, Ruled]
    missing: dict[str, tuple[Obj, str]]

    @property
    def path(self) -> str:
        """Where the API server has the objects of this kind."""
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{self.kind.plural}"

    @property
    def schema(self) -> dict[str, Obj]:
        """The schema of every field of the spec, and of what lists (`[]`) and maps (`*`) hold."""
        return dict(walk(schema_of(self.kind)))

    def object(self, spec: Obj, name: str = "m") -> Obj:
        """A manifest."""
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": API_VERSION, "kind": self.kind.name, "metadata": metadata, "spec": spec}

    def refusals(self, kube: Kube, obj: Obj) -> list[str]:
        """All that a strict dry run of a creation is told; nothing when it is taken."""
        return causes(*kube.attempt("POST", f"{self.path}?dryRun=All&fieldValidation=Strict", obj))

    def accepts(self, spec: Obj) -> bool:
        """Whether the type takes the spec, as the operator reads it."""
        try:
            self.kind.spec.model_validate(spec)
        except ValidationError:
            return False
        return True

    def check_valid(self, kube: Kube, spec: Obj) -> None:
        """A spec is taken and kept as it was written; with the server's defaults it means the same to the type."""
        live = kube.request("POST", f"{self.path}?dryRun=All&fieldValidation=Strict", self.object(spec))["spec"]
        assert {name: live[name] for name in spec} == spec
        assert self.kind.spec.model_validate(live) == self.kind.spec.model_validate(spec)

    def check_values(self, kube: Kube, path: str) -> None:
        """Each good value is taken, each bad one refused in exactly the words of its bounds; by the type as well."""
        values, node, name = self.fields[path], self.schema[path], spoken(path)
        for value in values.good:
            spec = placed(path, value, {**self.least, **values.beside})
            assert self.refusals(kube, self.object(spec)) == [], value
            assert self.accepts(spec), value
        for value in values.bad:
            spec = placed(path, value, {**self.least, **values.beside})
            told = self.refusals(kube, self.object(spec))
            expected = [words for _, words in refusals_of(node, name, value)]
            assert sorted(set(told) - set(values.also)) == sorted(expected) != [], value
            assert not self.accepts(spec), value

    def check_type(self, kube: Kube, path: str) -> None:
        """A value of another type is refused, by the API server and by the type."""
        node, name = self.schema[path], spoken(path)
        beside = self.fields[path].beside if path in self.fields else {}
        for value in _of_other_types(node):
            spec = placed(path, value, {**self.least, **beside})
            given = _name_of_type(value)
            words = f'{name}: Invalid value: "{given}": {name} in body must be of type {_type(node)}: "{given}"'
            assert words in self.refusals(kube, self.object(spec)), value
            assert not self.accepts(spec), value

    def check_rule(self, kube: Kube, name: str) -> None:
        """What just keeps a rule is taken, what just breaks it is refused in the words of the table and no others."""
        ruled = self.rules[name]
        assert self.refusals(kube, self.object(ruled.good)) == []
        assert self.accepts(ruled.good)
        assert self.refusals(kube, self.object(ruled.bad)) == sorted(ruled.told)

    def omissions(self) -> dict[str, str]:
        """What the table should speak of and does not: fields, bounds, rules and required fields."""
        set_somewhere = set[str]().union(*map(named, self.valid.values()))
        told = " ".join(words for ruled in self.rules.values() for words in ruled.told)
        nodes = {"": schema_of(self.kind), **self.schema}
        found = {path: "no valid spec sets it" for path in self.schema if path.rstrip("*") not in set_somewhere}
        for path, node in nodes.items():
            values = self.fields.get(path, Values([]))
            found |= {f"{path} {bound}": "not put to the test" for bound in lacking(node, values)}
            for rule in node.get("x-kubernetes-validations", ()):
                where = f"{spoken(path)}{rule.get('fieldPath', '')}: "
                found |= {rule["message"]: "no spec breaks it"} if not _says(told, where, rule["message"]) else {}
            required = (f"{path}.{name}".lstrip(".") for name in node.get("required", ()))
            found |= {one: "required, and never left out" for one in required if one not in self.missing}
        return found


def _says(told: str, where: str, message: str) -> bool:
    return any(
        f"{where}{kind}: {message}" in told for kind in ('Invalid value: "object"', "Forbidden", "Required value")
    )


def spoken(path: str) -> str:
    """A field as the API server names it in a refusal."""
    return f"spec.{path.replace('[]', '[0]').replace('*', 'key')}".rstrip(".")


def causes(status: int, answer: Obj) -> list[str]:
    """The refusals in an answer of the API server, as kubectl prints them; sorted, and without its own remarks."""
    if status < 300:
        return []
    listed = answer.get("details", {}).get("causes") or []
    if not listed:
        return [str(answer["message"])]
    return sorted(f"{one['field']}: {one['message']}" for one in listed if _NOT_CHECKED not in one["message"])


def schema_of(kind: CustomKind) -> Obj:
    """The schema of a kind's spec."""
    schema: Obj = crd_of(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def walk(node: Obj, path: str = "") -> Iterator[tuple[str, Obj]]:
    for name, inner in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, inner
        yield from walk(inner, here)
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(node.get(key), dict):
            yield f"{path}{mark}", node[key]
            yield from walk(node[key], f"{path}{mark}")


def named(spec: Any, path: str = "") -> set[str]:
    """The paths of all fields that a spec sets, in the notation of `Custom.fields`."""
    if isinstance(spec, list):
        return {f"{path}[]"}.union(*(named(one, f"{path}[]") for one in spec))
    if not isinstance(spec, dict):
        return set()
    inner = {f"{path}.{key}".lstrip("."): value for key, value in spec.items()}
    maps = {f"{path}."} if path else set()  # the entries of a map are found below its own path
    return maps.union(inner, *(named(value, key) for key, value in inner.items()))


def placed(path: str, value: Any, beside: Any) -> Any:
    """`beside` with `value` at `path`."""
    return _placed(re.findall(r"\[\]|[^.\[\]]+", path), value, beside)


def _placed(path: list[str], value: Any, beside: Any) -> Any:
    if not path:
        return value
    first, *rest = path
    if first == "[]":
        items = list(beside or [{}])
        return [_placed(rest, value, items[0]), *items[1:]]
    key = "key" if first == "*" else first
    return {**(beside or {}), key: _placed(rest, value, (beside or {}).get(key))}


def refusals_of(node: Obj, name: str, value: Any) -> list[tuple[str, str]]:
    """Which bounds of a field a value breaks, and in which words the API server must say so."""
    found: list[tuple[str, str]] = []
    shown, body = json.dumps(value, ensure_ascii=False), f"{name} in body should"
    if "enum" in node:
        if value not in node["enum"]:
            choices = ", ".join(f'"{one}"' for one in node["enum"])
            found.append(("enum", f"Unsupported value: {shown}: supported values: {choices}"))
    elif isinstance(value, str):
        if len(value) > node.get("maxLength", len(value)):
            found.append(("maxLength", f"Too long: may not be more than {node['maxLength']} bytes"))
        elif len(value) < node.get("minLength", 0):
            found.append(("minLength", f"Invalid value: {shown}: {body} be at least {node['minLength']} chars long"))
        elif "pattern" in node and not re.search(node["pattern"].replace("$", r"\Z"), value):
            found.append(("pattern", f"Invalid value: {shown}: {body} match '{node['pattern']}'"))
    elif isinstance(value, int):
        for bound, words in (("minimum", "greater than or equal to"), ("maximum", "less than or equal to")):
            if bound in node and (value < node[bound] if bound == "minimum" else value > node[bound]):
                found.append((bound, f"Invalid value: {shown}: {body} be {words} {node[bound]}"))
    else:
        most, bound = next((node[one], one) for one in ("maxItems", "maxProperties") if one in node)
        if len(value) > most:
            found.append((bound, f"Too many: {len(value)}: must have at most {most} items"))
    return [(bound, f"{name}: {words}") for bound, words in found]


def lacking(node: Obj, values: Values) -> set[str]:
    """The bounds of a field that no bad value breaks, or that no good value just keeps."""
    missing = {one for one in BOUNDS if one in node}
    if node.get("minLength") == 0:
        missing.discard("minLength")
    broken = {bound for value in values.bad for bound, _ in refusals_of(node, "", value)}
    kept = {
        "minimum": node.get("minimum") in values.good,
        "maximum": node.get("maximum") in values.good,
        "enum": set(node.get("enum", ())) <= {str(value) for value in values.good},
        **{
            bound: any(hasattr(value, "__len__") and len(value) == node[bound] for value in values.good)
            for bound in ("maxLength", "maxItems", "maxProperties")
            if bound in node
        },
    }
    return (missing - broken) | {bound for bound in missing if not kept.get(bound, True)}


def _type(node: Obj) -> str:
    return "integer,string" if "x-kubernetes-int-or-string" in node else str(node["type"])


def _name_of_type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _of_other_types(node: Obj) -> list[Any]:
    return {
        "integer,string": [1.5, True, ["a"]],
        "integer": ["5", 1.5, True],
        "string": [5, 0.7, True],
        "array": ["a", 5],
        "object": ["a", ["a"]],
    }[_type(node)]
