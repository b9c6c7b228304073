"""Request bodies of OpenAI's API: which fields there are, their limits, and which are honestly refused.

First on the path of an OpenAI request. Fields of vLLM and others that clients know (`top_k`, `min_p`, `typical_p`,
`repetition_penalty`, `stop_token_ids`, `ignore_eos`, `min_tokens`, `bad_words`, `cache_salt`) are taken too.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tandem_api.dialects import ApiError
from tandem_server.chat.grammar import ANY_OBJECT
from tandem_server.embedding import MAX_INPUTS
from tandem_server.http.fields import (
    MAX_LOGPROBS,
    Body,
    Count,
    Float,
    Int,
    MinP,
    Name,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stop,
    Stops,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    unsupported,
)

MAX_SALT = 256
MAX_BIASES = 300
MAX_BAD_WORDS = 64
Bias = Annotated[Float, Field(ge=-100, le=100)]
TokenId = Annotated[Int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool = False


class Sampled(Body):
    """What chat and text completions share."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SALT)] | None = None
    max_tokens: Count | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    bad_words: Annotated[list[Stop], Field(max_length=MAX_BAD_WORDS)] | None = None
    min_tokens: Annotated[Int, Field(ge=0, le=2**31 - 1)] | None = None
    best_of: Annotated[Int, Field(ge=1, le=128)] | None = None

    def refuse_unsupported(self) -> None:
        """Raises ApiError 400 naming the first field that cannot be honoured."""
        if self.n not in (None, 1):
            raise unsupported("n", "one answer a request; send the request n times")
        if self.best_of not in (None, 1):
            raise unsupported("best_of", "one answer a request")
        if self.min_tokens and self.limit is not None and self.min_tokens > self.limit:
            raise ApiError(
                400,
                f"min_tokens: must be at most max_tokens, which is {self.limit} (got {self.min_tokens})",
                param="min_tokens",
            )

    @property
    def limit(self) -> int | None:
        """The answer's bound in tokens."""
        return self.max_tokens

    def biases(self) -> dict[int, float]:
        """`logit_bias` by token id. Raises ApiError 400 for keys that are no such ids."""
        found: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) <= 20):
                raise ApiError(400, f"logit_bias: keys must be token ids (got {key[:40]!r})", param="logit_bias")
            found[int(key)] = value
        return found

    @property
    def streamed(self) -> bool:
        """Whether the answer comes as events."""
        return bool(self.stream)

    @property
    def usage_streamed(self) -> bool:
        """Whether the stream ends with a chunk of counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """Fields of the wire's `Sampling`; None where the request says nothing."""
        return {
            name: getattr(self, name)
            for name in (
                "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
                "frequency_penalty", "seed", "min_tokens",
            )
        }  # fmt: skip


class TextPart(Body):
    """One part of a message's content; only text is served yet."""

    type: str
    text: str | None = None


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=1024)] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As templates want it. Raises ApiError 400 for content that is not text."""
        where = f"messages.{index}"
        if self.tool_calls or self.role in ("tool", "function"):
            raise unsupported(f"{where}.tool_calls" if self.tool_calls else f"{where}.role", "tools are not served yet")
        content = self.content
        if isinstance(content, list):
            for number, part in enumerate(content):
                if part.type != "text" or part.text is None:
                    raise unsupported(f"{where}.content.{number}.type", f"only text, not {part.type}")
            content = "".join(part.text or "" for part in content)
        if content is None:
            raise ApiError(400, f"{where}.content: a message needs text", param=f"{where}.content")
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class JsonSchema(Body):
    """`response_format.json_schema`; its name and `strict` change nothing: the schema is always followed."""

    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: Any = None

    def refuse_unsupported(self) -> None:
        """See `Sampled.refuse_unsupported`."""
        super().refuse_unsupported()
        if self.tools or self.functions:
            raise unsupported("tools" if self.tools else "functions", "tool calls are not served yet")
        if self.tool_choice not in (None, "none", "auto"):
            raise unsupported("tool_choice", "tool calls are not served yet")
        if self.audio is not None or (self.modalities and self.modalities != ["text"]):
            raise unsupported("modalities", "only text is served")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")

    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema of the answer; None for plain text. Raises ApiError 400 where it is missing."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return ANY_OBJECT
        if wanted.json_schema is None:
            raise ApiError(400, "response_format.json_schema: is required", param="response_format.json_schema")
        return wanted.json_schema.schema_

    @property
    def logprob_count(self) -> int | None:
        """How many alternatives are told; None for no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """The answer's bound in tokens."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | list[list[TokenId]]
    )
    logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    def refuse_unsupported(self) -> None:
        """See `Sampled.refuse_unsupported`."""
        super().refuse_unsupported()
        if self.echo:
            raise unsupported("echo")
        if self.suffix:
            raise unsupported("suffix", "filling in the middle is not served yet")

    def one_prompt(self) -> str | list[int]:
        """The one prompt, as text or token ids. Raises ApiError 400 for none or several."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise unsupported("prompt", "one prompt a request; send several requests, they run side by side")
            prompt = prompt[0]
        if not prompt:
            raise ApiError(400, "prompt: must not be empty", param="prompt")
        return prompt  # type: ignore[return-value]


class EmbeddingsBody(Body):
    """POST /v1/embeddings."""

    model: Name
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None

    def texts(self) -> Sequence[str | list[int]]:
        """The inputs as a list. Raises ApiError 400 for none, too many or an empty one."""
        given: Any = self.input
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given or len(given) > MAX_INPUTS:
            raise ApiError(400, f"input: must hold 1 to {MAX_INPUTS} texts (got {len(given)})", param="input")
        if not all(given):
            raise ApiError(400, "input: a text must not be empty", param="input")
        return list(given)
