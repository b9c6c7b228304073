"""What the front end reads of a checkpoint's folder: tokenizer, template, end tokens, defaults. Never the weights.

Read once a load, beside the runner that reads the weights.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tandem_api.dialects import ApiError
from tandem_server.chat.template import ChatTemplate, TemplateError
from tandem_server.chat.tokenizer import Tokenizer

MAX_FILE = 64 * 2**20


class CheckpointError(Exception):
    """A folder that holds no checkpoint that can be served, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """One folder's facts."""

    folder: Path
    config: dict[str, Any]
    config_digest: str
    """SHA-256 of config.json, 64 hex digits."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    template_error: str = ""
    end_tokens: frozenset[int] = frozenset()
    begin_token: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """What `generation_config.json` proposes: temperature, top_k, top_p, repetition_penalty."""
    input_limit: int | None = None
    """Embedding models: tokens of one input, where the checkpoint sets fewer than its positions."""
    input_prompt: str = ""
    """Embedding models: what the checkpoint wants put before every text."""
    weight_file_bytes: int = 0
    stamp: tuple[tuple[str, int, int], ...] = ()
    """Name, bytes and time of change (nanoseconds) of each file that it was read from."""

    @property
    def family(self) -> str:
        """Such as `llama`."""
        return str(self.config.get("model_type", ""))


def read_checkpoint(folder: Path, known: Checkpoint | None = None) -> Checkpoint:
    """Reads the folder. Raises CheckpointError naming the file and what is wrong with it.

    Args:
        known: what was read before; given back where no file changed. Reading a large tokenizer holds the
            interpreter's lock for a third of a second, which no other model shall feel at each restart of a runner.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    stamp = _stamp(folder)
    if known is not None and (known.folder, known.stamp) == (folder, stamp):
        return known
    config = _read_json(folder / "config.json", required=True)
    settings = _read_json(folder / "tokenizer_config.json")
    generation = _read_json(folder / "generation_config.json")
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save the tokenizer in its fast form next to the weights"
        )
    try:
        tokenizer = Tokenizer(folder / "tokenizer.json")
    except Exception as error:
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    template, template_error = _read_template(folder, settings)
    sentence = _read_json(folder / "sentence_bert_config.json")
    limit = sentence.get("max_seq_length")
    return Checkpoint(
        folder=folder,
        config=config,
        config_digest=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        tokenizer=tokenizer,
        template=template,
        template_error=template_error,
        end_tokens=_end_tokens(config, settings, generation, tokenizer),
        begin_token=tokenizer.token_id(_token_text(settings, "bos_token")),
        sampling=_proposed_sampling(generation),
        input_limit=limit if isinstance(limit, int) and limit > 0 else None,
        input_prompt=_input_prompt(_read_json(folder / "config_sentence_transformers.json")),
        weight_file_bytes=sum(size for name, size, _ in stamp if name.endswith(".safetensors")),
        stamp=stamp,
    )


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    read = (file for file in folder.iterdir() if file.suffix in (".json", ".jinja", ".safetensors"))
    try:
        return tuple(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in read))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise CheckpointError(f"{path} is larger than {MAX_FILE} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        if required:
            raise CheckpointError(
                f"{path.parent} has no {path.name}; a checkpoint folder in Hugging Face's form is expected"
            ) from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _input_prompt(settings: dict[str, Any]) -> str:
    """The prompt that Sentence-Transformers uses where the caller names none."""
    prompts, name = settings.get("prompts"), settings.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if name and not isinstance(prompt, str):
        raise CheckpointError(f"config_sentence_transformers.json has no prompt {name!r}, which default_prompt_name is")
    return prompt or ""


def _token_text(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _read_template(folder: Path, settings: dict[str, Any]) -> tuple[ChatTemplate | None, str]:
    text = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        text = (folder / "chat_template.jinja").read_text("utf-8")
    elif (folder / "chat_template.json").is_file():
        text = _read_json(folder / "chat_template.json").get("chat_template", text)
    if isinstance(text, list):
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, dict)}
        text = named.get("default")
    if not isinstance(text, str) or not text:
        return None, ""
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
    try:
        return ChatTemplate(text, {name: _token_text(settings, name) for name in names}), ""
    except TemplateError as error:
        return None, str(error)


def _end_tokens(
    config: dict[str, Any], settings: dict[str, Any], generation: dict[str, Any], tokenizer: Tokenizer
) -> frozenset[int]:
    found: set[int] = set()
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        values = value if isinstance(value, list) else [value]
        found.update(each for each in values if isinstance(each, int))
    named = tokenizer.token_id(_token_text(settings, "eos_token"))
    if named is not None:
        found.add(named)
    return frozenset(found)


def _proposed_sampling(generation: dict[str, Any]) -> dict[str, Any]:
    wanted = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    proposed = {key: generation[key] for key in wanted if isinstance(generation.get(key), int | float)}
    if generation.get("do_sample") is False:
        proposed["temperature"] = 0.0
    return proposed


def check_tokens(tokens: list[int], checkpoint: Checkpoint, field: str) -> None:
    """Raises ApiError 400 for a token id outside the vocabulary."""
    size = checkpoint.tokenizer.size
    for number in tokens:
        if not 0 <= number < size:
            raise ApiError(400, f"{field}: token ids must be from 0 to {size - 1} (got {number})", param=field)
