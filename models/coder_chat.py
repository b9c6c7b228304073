"""Chat form of the demo model: its special tokens, its template, and training chats made from library code.

Used by `train_python_coder.py` for a share of the training rows and by `coder_export.py`, which writes the same
template beside the weights, so that what a server renders is exactly what the model was trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from coder_corpus import SourceFile, Unit, passages_of

BEGIN, END, SYSTEM, USER, ASSISTANT, PAD = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIAL_TOKENS = (BEGIN, END, SYSTEM, USER, ASSISTANT, PAD)

# A turn is its role's token, its text, and the end token. Trailing blanks of a user's turn are dropped because the
# answer always starts on a fresh line; tool turns read as user turns, developer turns as system turns.
CHAT_TEMPLATE = (
    "{{- '<|begin|>' -}}"
    "{%- for message in messages -%}"
    "{%- set content = message['content'] -%}"
    "{%- if content is none or content is undefined -%}{%- set text = '' -%}"
    "{%- elif content is string -%}{%- set text = content -%}"
    "{%- else -%}{%- set text = content | selectattr('text', 'defined') | map(attribute='text') | join('\\n') -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|assistant|>' + text.rstrip() + '<|end|>' -}}"
    "{%- elif message['role'] in ['system', 'developer'] -%}{{- '<|system|>' + text.strip() + '<|end|>' -}}"
    "{%- else -%}{{- '<|user|>' + text.rstrip() + '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You write Python.",
    "Continue the code.",
    "You are a coding assistant. Answer with Python code.",
    "Be brief.",
)
REQUESTS = (
    "{summary}",
    "# {summary}",
    "Write a function {name}: {summary}",
    "Write {name} in Python. {summary}",
    "Write Python code: {summary}",
    "Please write `{name}`. {summary}",
)


@dataclass(frozen=True)
class Turn:
    """One exchange: what the user says and what the assistant answers."""

    user: str
    assistant: str


def split_lines(lines: tuple[str, ...], rng: random.Random) -> Turn | None:
    """The first few lines as the user's turn and the rest as the answer, the cut leaning to one line."""
    if len(lines) < 2:
        return None
    cut = min(len(lines) - 1, rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 8)))
    user, answer = "\n".join(lines[:cut]).rstrip(), "\n".join(lines[cut:]).strip("\n").rstrip()
    return Turn(user, answer) if user and answer else None


def unit_turn(unit: Unit, rng: random.Random) -> Turn | None:
    """An exchange about one function or class: its purpose in words, or its first lines as code."""
    if len(unit.summary) > 12 and rng.random() < 0.35:
        request = rng.choice(REQUESTS).format(name=unit.name, summary=unit.summary)
        return Turn(request, "\n".join(unit.lines))
    return split_lines(unit.lines, rng)


def chat_text(file: SourceFile, units: list[Unit], rng: random.Random) -> str:
    """One training chat of one to three exchanges about a file's code, as the template renders it; '' if none fits."""
    turns: list[Turn] = []
    if not units or rng.random() < 0.25:
        turn = split_lines(passages_of(file, rng), rng)
        turns = [turn] if turn else []
    else:
        count = rng.choice((1, 1, 1, 1, 1, 2, 3))
        first = rng.randrange(len(units))
        turns = [turn for unit in units[first : first + count] if (turn := unit_turn(unit, rng))]
    if not turns:
        return ""
    head = SYSTEM + rng.choice(SYSTEM_TEXTS) + END if rng.random() < 0.25 else ""
    return BEGIN + head + "".join(f"{USER}{t.user}{END}{ASSISTANT}{t.assistant}{END}" for t in turns)
