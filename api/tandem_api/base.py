"""The pydantic base of every contract: camelCase outside, snake_case inside."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Reads camelCase or snake_case; ignores fields it does not know, so that versions may differ by one."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Spec(Contract):
    """A part of a custom resource's spec: unknown fields are refused, as the API server's strict mode does."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
