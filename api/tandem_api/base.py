"""The pydantic base of every contract: camelCase outside, snake_case inside; and of rules between fields."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Reads camelCase or snake_case; ignores fields it does not know, so that versions may differ by one."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Spec(Contract):
    """A part of a custom resource's spec: unknown fields are refused, as the API server's strict mode does."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


FORBIDDEN = "FieldValueForbidden"
"""Reason of a rule by which a field does not belong there, whatever its value."""
REQUIRED = "FieldValueRequired"
"""Reason of a rule by which a field must be there."""


def rule(expression: str, message: str, field: str = "", reason: str = "") -> dict[str, str]:
    """A CEL rule of the API server over the type it stands on (`self`), with the sentence that a person reads.

    Args:
        expression: true for what is valid.
        message: what to do, in terms of the manifest's own field names.
        field: the field that the refusal names, such as `minLength`; "" names the whole object.
        reason: how the API server calls the refusal; "" is its FieldValueInvalid.
    """
    path, called = {"fieldPath": f".{field}"} if field else {}, {"reason": reason} if reason else {}
    return {"rule": expression, "message": message, **called, **path}


def rules(*those: dict[str, str]) -> ConfigDict:
    """The `model_config` of a type with these CEL rules; they become part of the CRD's schema."""
    schema: dict[str, Any] = {"x-kubernetes-validations": list(those)}
    return ConfigDict(json_schema_extra=schema)
