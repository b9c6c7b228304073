"""Request bodies of Ollama's API: which fields there are, their limits, and which are honestly refused.

First on the path of an Ollama request.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field

from tandem_api.dialects import ApiError
from tandem_server.chat.grammar import ANY_OBJECT
from tandem_server.embedding import MAX_INPUTS
from tandem_server.http.fields import (
    MAX_LOGPROBS,
    Body,
    Count,
    Int,
    MinP,
    Name,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    unsupported,
)

_DURATION = re.compile(r"^[+-]?(\d+(\.\d*)?(ns|us|\u00b5s|ms|s|m|h))+$|^[+-]?0$")
MIN_CONTEXT = 4
NUM_KEEP = 4


class Options(Body):
    """`options`. Those of llama.cpp that have no meaning here (`num_gpu`, `num_thread`, ...) are ignored."""

    num_predict: Annotated[Int, Field(ge=-2, le=2**31 - 1)] | None = None
    num_keep: Annotated[Int, Field(ge=-1, le=2**31 - 1)] = NUM_KEEP
    num_ctx: Annotated[Int, Field(ge=MIN_CONTEXT, le=2**31 - 1)] | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    seed: Seed | None = None
    stop: Stops = Field(default_factory=list)
    repeat_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    @property
    def limit(self) -> int | None:
        """The answer's bound in tokens; None for as many as fit. Raises ApiError 400 for 0."""
        if self.num_predict == 0:
            raise ApiError(
                400, "options.num_predict: must be at least 1, or -1 for no limit", param="options.num_predict"
            )
        return None if self.num_predict is None or self.num_predict < 0 else self.num_predict

    @property
    def seeded(self) -> bool:
        """Whether the answer is to be the same each time; Ollama's -1 means not."""
        return self.seed is not None and self.seed >= 0

    def sampling(self) -> dict[str, Any]:
        """Fields of the wire's `Sampling`; None where the request says nothing."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "seed": self.seed if self.seeded else None,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }


class Generating(Body):
    """What chat and generate share."""

    model: Name
    stream: bool | None = None
    options: Options = Field(default_factory=Options)
    keep_alive: str | float | int | None = None
    format: Any = None
    think: Any = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def refuse_unsupported(self) -> None:
        """Raises ApiError 400 naming the first field that cannot be honoured."""
        keep_alive_seconds(self.keep_alive)
        if self.think not in (None, False):
            raise unsupported("think", f"{self.model} does not support thinking here")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")

    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema of the answer; None for plain text. Raises ApiError 400 for another format."""
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return ANY_OBJECT
        if not isinstance(self.format, dict):
            raise ApiError(400, 'format: must be "json" or a JSON schema', param="format")
        return self.format

    @property
    def streamed(self) -> bool:
        """Ollama streams unless told otherwise."""
        return self.stream is not False

    @property
    def kept(self) -> int | None:
        """Tokens that stay when the context is full; None to end there. Ollama goes on unless told otherwise."""
        return None if self.shift is False else self.options.num_keep

    @property
    def logprob_count(self) -> int | None:
        """How many alternatives are told; None for no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def unloads(self) -> bool:
        """Whether a request without a prompt asks to unload the model rather than to load it."""
        return keep_alive_seconds(self.keep_alive) == 0


_UNITS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_seconds(value: str | float | int | None) -> float | None:
    """Ollama's form: seconds as a number, or a duration such as 5m; negative for ever. None where nothing is said.

    Raises ApiError 400 for anything else.
    """
    if isinstance(value, bool):
        raise ApiError(400, "keep_alive: must be a number or a duration, not a boolean", param="keep_alive")
    if value is None or not isinstance(value, str):
        return None if value is None else float(value)
    if not _DURATION.match(value):
        raise ApiError(
            400,
            f"keep_alive: must be seconds as a number or a duration such as 5m (got {value[:40]!r})",
            param="keep_alive",
        )
    parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|\u00b5s|ms|s|m|h)", value)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -seconds if value.startswith("-") else seconds


class OllamaMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As templates want it. Raises ApiError 400 for content that is not text."""
        if self.images:
            raise unsupported(f"messages.{index}.images", "this model takes text only")
        if self.tool_calls or self.role == "tool":
            raise unsupported(f"messages.{index}.role" if self.role == "tool" else "tool_calls", "no tools yet")
        return {"role": self.role, "content": self.content}


class ChatBody(Generating):
    """POST /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] = Field(default_factory=list)
    tools: list[Any] | None = None

    def refuse_unsupported(self) -> None:
        """See `Generating.refuse_unsupported`."""
        super().refuse_unsupported()
        if self.tools:
            raise unsupported("tools", f"{self.model} does not support tools here")


class GenerateBody(Generating):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    template: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    context: Annotated[list[Int], Field(max_length=1_048_576)] | None = None
    images: list[Any] | None = None

    def refuse_unsupported(self) -> None:
        """See `Generating.refuse_unsupported`."""
        super().refuse_unsupported()
        if self.images:
            raise unsupported("images", "this model takes text only")
        if self.template:
            raise unsupported("template", "the checkpoint's own is used; send raw: true to write the whole prompt")
        if self.suffix:
            raise unsupported("suffix", "filling in the middle is not served yet")
        if self.raw and (self.system or self.context):
            raise ApiError(400, "raw: goes with neither system nor context", param="raw")


class EmbedBody(Body):
    """POST /api/embed."""

    model: Name
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Count | None = None
    keep_alive: str | float | int | None = None

    def texts(self) -> list[str]:
        """The inputs as a list. Raises ApiError 400 for too many."""
        given = [self.input] if isinstance(self.input, str) else self.input
        if len(given) > MAX_INPUTS:
            raise ApiError(400, f"input: must hold at most {MAX_INPUTS} texts (got {len(given)})", param="input")
        return given


class OldEmbedBody(Body):
    """POST /api/embeddings, Ollama's older form."""

    model: Name
    prompt: str
    keep_alive: str | float | int | None = None


class ShowBody(Body):
    """POST /api/show."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool | None = None

    @property
    def wanted(self) -> str:
        """The model's name, by its new or its old field. Raises ApiError 400 for none."""
        if not (self.model or self.name):
            raise ApiError(400, "model: is required", param="model")
        return self.model or self.name or ""
