"""Words that an answer must not hold, as the runs of tokens that would spell them.

Beside the prompt on the path of an OpenAI request. As vLLM has it: each word as it stands and, where that is another
token, with a space before it; a word that the tokens would spell in some other way can still come.
"""

from collections.abc import Sequence

from tandem_api.dialects import ApiError
from tandem_server.chat.checkpoint import Checkpoint
from tandem_server.engine.native.needs import MAX_WORD_TOKENS


def bad_words(words: Sequence[str], checkpoint: Checkpoint) -> list[list[int]]:
    """Token runs of all words. Raises ApiError 400 naming a word of too many tokens, or of none."""
    runs: list[list[int]] = []
    for word in words:
        bare = checkpoint.tokenizer.encode_raw(word.lstrip(), add_special=False)
        spaced = checkpoint.tokenizer.encode_raw(f" {word.lstrip()}", add_special=False)
        longest = max(len(bare), len(spaced))
        if not bare or longest > MAX_WORD_TOKENS:
            raise ApiError(
                400,
                f"bad_words: {word[:40]!r} has {longest if bare else 'no'} tokens, 1 to {MAX_WORD_TOKENS} are possible",
                param="bad_words",
            )
        runs.append(bare)
        # Where the space is a token of its own, forbidding the bare form forbids both.
        if spaced[0] != bare[0] and len(spaced) == len(bare):
            runs.append(spaced)
    return runs
