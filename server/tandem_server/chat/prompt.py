"""From messages or text to a prompt's token ids, and which messages to drop when they do not fit.

On the path of a request between the dialect and admission; called by `generation` with the room that there is.
"""

from typing import Any

from tandem_api.dialects import ApiError
from tandem_server.chat.checkpoint import Checkpoint
from tandem_server.chat.template import TemplateError


def chat_prompt(checkpoint: Checkpoint, messages: list[dict[str, Any]], **extra: Any) -> list[int]:
    """Token ids of a conversation up to where the answer begins. Raises ApiError 400."""
    if checkpoint.template is None:
        why = f": {checkpoint.template_error}" if checkpoint.template_error else ""
        raise ApiError(
            400,
            f"this model has no chat template{why}; use /v1/completions, or /api/generate with raw: true",
            code="no_chat_template",
            param="model",
        )
    guarded = checkpoint.tokenizer.guard(messages)
    try:
        text = checkpoint.template.render(guarded, **extra)
    except TemplateError as error:
        raise ApiError(400, f"messages: {error}", code="template_error", param="messages") from error
    return checkpoint.tokenizer.encode_prompt(text)


def fitting_chat_prompt(checkpoint: Checkpoint, messages: list[dict[str, Any]], room: int) -> list[int]:
    """As `chat_prompt`, with the oldest messages left out until the prompt leaves room for an answer.

    System messages and the last message are kept, as Ollama does; if even these do not fit, all that is kept is
    returned and the caller's length check tells. Finds the fewest to drop by bisection: O(log n) renderings.
    """
    prompt = chat_prompt(checkpoint, messages)
    if len(prompt) < room:
        return prompt
    droppable = [index for index, message in enumerate(messages[:-1]) if message.get("role") != "system"]
    low, high = 1, len(droppable)
    best = prompt
    while low <= high:
        drop = (low + high) // 2
        gone = set(droppable[:drop])
        kept = [message for index, message in enumerate(messages) if index not in gone]
        candidate = _try_prompt(checkpoint, kept)
        if candidate is not None and len(candidate) < room:
            best, high = candidate, drop - 1
        else:
            best = candidate if candidate is not None and len(best) >= room else best
            low = drop + 1
    return best


def _try_prompt(checkpoint: Checkpoint, messages: list[dict[str, Any]]) -> list[int] | None:
    """None where the template does not take this cut, such as one that wants turns to alternate."""
    try:
        return chat_prompt(checkpoint, messages)
    except ApiError:
        return None
