"""Chat templates: a checkpoint's Jinja text turned into a prompt, in a sandbox with limits.

On the path of every chat request, before the tokenizer. A template comes with the weights and is not trusted: it
cannot reach Python, change what it is given, loop without end over ranges, or make more text than a bound.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_RANGE = 10_000
MAX_PRODUCT = 1_000_000
"""Longest string or list that a multiplication in a template may make."""
MIN_OUTPUT = 1_000_000
OUTPUT_PER_INPUT = 8


class TemplateError(Exception):
    """A prompt that the template refused or could not make; `by_template` if it said so itself."""

    def __init__(self, message: str, by_template: bool = False) -> None:
        super().__init__(message)
        self.by_template = by_template


class _GenerationMarks(Extension):
    """`{% generation %}` marks the assistant's words for training; here its content is just text."""

    tags = {"generation"}  # noqa: RUF012 - the base class's own shape

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Context, operator_name: str, left: Any, right: Any) -> Any:
        if operator_name == "**" and not (isinstance(right, int) and 0 <= right <= 64 and abs(left) <= 1024):
            raise SecurityError("a template may not use such large powers")
        if operator_name == "%" and isinstance(left, str):
            raise SecurityError("a template may not format text with %")
        if operator_name == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, Sequence) and isinstance(times, int) and len(many) * times > MAX_PRODUCT:
                    raise SecurityError("a template may not repeat text or lists so often")
        return {"*": operator.mul, "**": operator.pow, "%": operator.mod}[operator_name](left, right)


def _limited_range(*arguments: int) -> range:
    made = range(*arguments)
    if len(made) > MAX_RANGE:
        raise SecurityError(f"a template's range has at most {MAX_RANGE} numbers")
    return made


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message), by_template=True)


def _environment(now: Callable[[], datetime]) -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationMarks]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["range"] = _limited_range
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    return environment


class ChatTemplate:
    """One compiled template.

    Args:
        text: Jinja text. Raises TemplateError when it does not parse.
        variables: what a template may name besides the messages, such as `bos_token`.
    """

    def __init__(
        self, text: str, variables: Mapping[str, Any], now: Callable[[], datetime] = lambda: datetime.now().astimezone()
    ) -> None:
        self.text = text
        self._variables = dict(variables)
        try:
            self._template = _environment(now).from_string(text)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from error

    def render(self, messages: list[dict[str, Any]], **extra: Any) -> str:
        """The prompt for `messages`, ending where the assistant's answer begins. Raises TemplateError."""
        limit = max(MIN_OUTPUT, OUTPUT_PER_INPUT * sum(len(str(message)) for message in messages))
        values = {**self._variables, "messages": messages, "tools": None, "add_generation_prompt": True, **extra}
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(values):
                length += len(part)
                if length > limit:
                    raise TemplateError(f"the chat template made more than {limit} characters of text")
                parts.append(part)
        except TemplateError:
            raise
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise TemplateError(f"the chat template cannot take these messages: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise TemplateError("the chat template needs too much memory") from error
        return "".join(parts)
