"""Types of request fields that the dialects share, with the limits that keep bad input away from the runner.

First on the path of a request's content. Strict: a string is not a number, a boolean is not an integer.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from tandem_api.dialects import ApiError
from tandem_api.fields import SamplingDefaults
from tandem_server.chat.checkpoint import Checkpoint
from tandem_server.engine.wire import Sampling

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
SEED_MASK = 2**63 - 1


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")  # noqa: TRY004 - what pydantic takes for a wrong value
    return value


Float = Annotated[float, BeforeValidator(_no_boolean)]
Int = Annotated[int, BeforeValidator(_no_boolean)]
Temperature = Annotated[Float, Field(ge=0, le=100)]
Penalty = Annotated[Float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[Float, Field(gt=0, le=10)]
TopP = Annotated[Float, Field(gt=0, le=1)]
MinP = Annotated[Float, Field(ge=0, le=1)]
TypicalP = Annotated[Float, Field(gt=0, le=1)]
TopK = Annotated[Int, Field(ge=-1, le=2**31 - 1)]
Seed = Annotated[Int, Field(ge=-(2**63), le=2**64 - 1)]
Count = Annotated[Int, Field(ge=1, le=2**31 - 1)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _one_or_many(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[Stop], BeforeValidator(_one_or_many), Field(max_length=MAX_STOPS)]


class Body(BaseModel):
    """A request's body. Strict types, finite numbers; fields that are not known are ignored, as upstream does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def unsupported(field: str, why: str = "") -> ApiError:
    """A field that is understood but cannot be honoured: said so, rather than ignored."""
    return ApiError(400, f"{field} is not supported{': ' + why if why else ''}", code="unsupported", param=field)


def sampling_for(
    asked: Mapping[str, Any], defaults: SamplingDefaults, checkpoint: Checkpoint, base: Sampling
) -> Sampling:
    """What a request samples with: its own words, else the Model's defaults, else the checkpoint's, else `base`.

    Args:
        asked: fields of `Sampling` by name; None where the request says nothing.
        base: the dialect's own defaults.
    """
    own: dict[str, Any] = {}
    if defaults.temperature is not None:
        own["temperature"] = float(defaults.temperature)
    if defaults.top_p is not None and float(defaults.top_p) > 0:
        own["top_p"] = float(defaults.top_p)
    if defaults.top_k is not None:
        own["top_k"] = defaults.top_k
    said = {key: value for key, value in asked.items() if value is not None}
    merged = {**checkpoint.sampling, **own, **said}
    merged["top_k"] = max(0, int(merged.get("top_k", base.top_k)))
    merged["seed"] = int(merged.get("seed", 0)) & SEED_MASK
    return replace(base, **merged)


def max_tokens_for(asked: int | None, defaults: SamplingDefaults) -> int | None:
    """The request's bound on its answer, else the Model's; None for as many as fit."""
    return asked if asked is not None else defaults.max_tokens
