"""What an answer must look like, as a grammar that the runner follows token by token.

Beside the prompt on the path of a request that asks for JSON. llguidance knows JSON Schema; what it cannot hold an
answer to is refused here by name, before the request takes a place in line. Nothing is fetched for a `$ref`.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from tandem_api.dialects import ApiError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

SPACES: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": r"[ \n]{0,2},[ \n\t]{0,40}",
    "key_separator": r" {0,1}: {0,1}",
}
"""Where blanks may stand, and how many: a small model that may go on with them for ever does."""
ANY_OBJECT: dict[str, Any] = {"type": "object"}


async def json_grammar(schema: dict[str, Any], field: str) -> str:
    """The grammar of the JSON texts that `schema` describes, for `Add.grammar`.

    Raises ApiError 400 naming `field` and what the schema asks for that cannot be had.
    """
    grammar, problem = await asyncio.to_thread(_compile, schema)
    if problem:
        raise ApiError(400, f"{field}: this schema cannot be followed: {problem}", param=field)
    return grammar


def _compile(schema: dict[str, Any]) -> tuple[str, str]:
    """Grammar, or what is wrong with the schema; large ones take up to a second."""
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SPACES)
    except (ValueError, RecursionError) as error:
        return "", str(error)
    failed, said = LLMatcher.validate_grammar_with_warnings(grammar)
    return grammar, " ".join(said[0].split()) if failed and said else ""
