"""Makes the reference page of the API from the types: `docs/reference.md`.

Runs at development time (`make generate`); the page is committed and a test fails when the two differ. Everything comes
from the CustomResourceDefinitions of `crd` and from the table of `reasons`, so it is what `kubectl explain` says, on
one page.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tandem_api.crd import KINDS, CustomKind, crd_of
from tandem_api.names import API_VERSION
from tandem_api.reasons import REASONS, TYPES
from tandem_api.scalars import (
    CPU_PATTERN,
    DECIMAL_PATTERN,
    DURATION_PATTERN,
    MEMORY_PATTERN,
    NAME_PATTERN,
    OBJECT_NAME_PATTERN,
)
from tandem_api.unsupported import limits

Schema = dict[str, Any]

_HEAD = f"""\
<!-- Made from the types in api/tandem_api by `make generate`; do not edit. -->

# API reference

Group and version `{API_VERSION}`, both kinds namespaced. `kubectl explain model.spec` prints the same descriptions;
[`manifests/examples`](../manifests/examples) has manifests to start from.

Some fields are known and validated before there is a version that can carry them out. Whoever sets one is answered by
`Ready=False` with the [reason](#reasons) `Unsupported`, which names the field and what to do instead.

"""
_INTROS = {
    "Model": """\
A Model without `pool` gets pods of its own. With `pool` it is served by the pods of a ModelPool of its namespace,
together with other Models. Only `source` must be given:

```yaml
apiVersion: tandem.dev/v1alpha1
kind: Model
metadata:
  name: qwen3
spec:
  source: hf://Qwen/Qwen3-0.6B
```

Its name has at most 40 characters: lower-case letters, digits and `-`.
""",
    "ModelPool": """\
Every pod of the pool can serve every Model that names it, and loads what is asked for. Whoever may create a ModelPool
chooses what runs in a pod: give that right as you give the right to create pods.

```yaml
apiVersion: tandem.dev/v1alpha1
kind: ModelPool
metadata:
  name: shared
spec:
  gpusPerPod: 1
  volumes:
    - claim: weights
```
""",
}
_FORMS = {
    NAME_PATTERN: "lower-case letters, digits and `-`",
    OBJECT_NAME_PATTERN: "name of an object",
    DECIMAL_PATTERN: 'a decimal in quotes, such as `"0.7"`',
    DURATION_PATTERN: "a duration such as `5m` or `1h30m`",
    CPU_PATTERN: "text such as `500m` or `0.5`",
    MEMORY_PATTERN: "text such as `500M` or `8Gi`",
    "^Auto$": "`Auto`",
}
"""Patterns in words, always of what may be a number or text; others are printed as they are."""


def reference() -> str:
    """The whole page as Markdown; equal types give equal text."""
    contents = [f"- [{kind.name}](#{kind.name.lower()}): {kind.description}" for kind in KINDS]
    contents.append("- [Conditions](#conditions): what a status tells, and what to do about it")
    return _HEAD + "\n".join(contents) + "\n\n" + "\n".join(map(_kind, KINDS)) + "\n" + _conditions()


def _kind(kind: CustomKind) -> str:
    version = crd_of(kind)["spec"]["versions"][0]
    parts: Schema = version["schema"]["openAPIV3Schema"]["properties"]
    spec, status = parts["spec"], parts["status"]
    ruled = [
        [f"`{path}`" if path else "", one["message"]]
        for where, node, _ in [("", spec, True), *_walk(spec)]
        for one in node.get("x-kubernetes-validations", ())
        for path in [_join(where, one.get("fieldPath", "").lstrip("."))]
    ]
    columns = [
        [column["name"].upper(), column["description"], "with `-o wide`" if column.get("priority") else "always"]
        for column in version["additionalPrinterColumns"]
    ]
    fields = [[f"`{path}`", type_of(node), _default(node, must), _words(node)] for path, node, must in _walk(spec)]
    told = [[f"`{path}`", _type_of_status(node), _words(node)] for path, node, _ in _walk(status)]
    return "\n".join(
        [
            f"## {kind.name}\n",
            f"{kind.description}\n\n{_INTROS[kind.name]}",
            f"### {kind.name}: spec\n",
            _table(("Field", "Type", "Default", "Description"), fields),
            f"### {kind.name}: rules between fields\n",
            f"The API server refuses a {kind.name} that breaks one of them, in these words.\n",
            _table(("Field", "Rule"), ruled),
            f"### {kind.name}: what this version cannot do yet\n",
            f"Such a {kind.name} is taken, and answered by the reason `Unsupported`; what it had before goes on.\n",
            _table(("Field", "Instead"), [[f"`{field}`", instead] for field, instead in limits(kind.name)]),
            f"### {kind.name}: status\n",
            "Written by the operator; a field that nobody has observed is absent.\n",
            _table(("Field", "Type", "Description"), told),
            f"### {kind.name}: columns of `kubectl get {kind.plural}`\n",
            _table(("Column", "What it shows", "Shown"), columns),
        ]
    )


def _conditions() -> str:
    types = [
        [f"`{one.name}`", "always" if one.always else "when there is something to tell", one.meaning] for one in TYPES
    ]
    reasons = [
        [f"`{one.name}`", "<br>".join(f"`{where}`" for where in one.where), one.meaning, one.advice or "-"]
        for one in REASONS
    ]
    return "\n".join(
        [
            "## Conditions\n",
            "`kubectl describe model NAME` prints them with a message that holds the numbers. Each changes its\n"
            "`lastTransitionTime` only when its status changes.\n",
            _table(("Condition", "Present", "Meaning"), types),
            "### Reasons\n",
            _table(("Reason", "Of", "Meaning", "What to do"), reasons),
        ]
    )


def _walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Every field below a schema: its path as in `adapters[].name`, its schema, and whether it must be given."""
    for name, node in schema.get("properties", {}).items():
        here = _join(path, name)
        yield here, node, name in schema.get("required", ())
        yield from _walk(node, here)
        yield from _walk(node.get("items", {}), f"{here}[]")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def type_of(node: Schema) -> str:
    """Type and bounds of a field in words, as Markdown."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "x-kubernetes-int-or-string" in node:
        return f"integer {_range(node)}, or {_FORMS[node['pattern']]}"
    kind = node["type"]
    if kind == "array":
        keys = node.get("x-kubernetes-list-map-keys")
        unique = f", each with its own `{keys[0]}`" if keys else ", each once"
        inner = "objects" if node["items"].get("type") == "object" else type_of(node["items"])
        return f"list of up to {node['maxItems']}{unique}: {inner}"
    if kind == "object":
        if "additionalProperties" not in node:
            return "object"
        return f"map of up to {node['maxProperties']}: {type_of(node['additionalProperties'])}"
    if kind == "string":
        return _text(node)
    return f"integer {_range(node)}" if "minimum" in node else str(kind)


def _text(node: Schema) -> str:
    pattern = node.get("pattern")
    if pattern == DECIMAL_PATTERN:
        return _FORMS[pattern]
    form = f", {_FORMS.get(pattern, f'`{pattern}`')}" if pattern else ""
    return f"text, {node.get('minLength', 0)} to {node['maxLength']:,} characters{form}"


def _type_of_status(node: Schema) -> str:
    if "enum" in node:
        return type_of(node)
    return "list" if node["type"] == "array" else str(node.get("format", node["type"]))


def _range(node: Schema) -> str:
    return f"{node['minimum']:,} to {node['maximum']:,}"


def _default(node: Schema, required: bool) -> str:
    if required:
        return "**required**"
    default = node.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{default}`" if default != "" else "empty"


def _words(node: Schema) -> str:
    return str(node.get("description", ""))


def _table(head: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Text inside a table: a bar ends a cell even inside code, and angle brackets would be taken for HTML."""
    breaks = text.replace("|", "\\|").split("<br>")
    return "<br>".join(part.replace("<", "&lt;").replace(">", "&gt;") for part in breaks)
