"""Which checkpoints make embeddings, and how long a text they take: what a load and an estimate both ask. No torch."""

from pathlib import Path
from typing import Any

from tandem_server.engine.native.config import ENCODERS, read_json

BATCH_TOKENS = 4096
"""Padded tokens of one forward: bounds the memory that a request of many inputs takes."""
POOLER = "pooler."
"""Part of a checkpoint, or of the library's class, that pooled embeddings do not use."""
TASK_HEADS = (POOLER, "lm_head.", "cls.", "classifier.", "qa_outputs.", "vocab_transform.", "vocab_projector.")
"""Parts of a checkpoint that were trained for something else."""


def is_sentence_model(folder: Path) -> bool:
    """Whether the folder says how its tokens' states become one vector."""
    return (folder / "modules.json").is_file()


def embeds(folder: Path, task: str, architecture: str) -> bool:
    """Whether the checkpoint is loaded to make embeddings, as `task` and the folder have it."""
    return task == "Embed" or (task == "Auto" and (architecture in ENCODERS or is_sentence_model(folder)))


def most_tokens(folder: Path) -> int | None:
    """Longest input that the folder says it was made for, if it does. Raises LoadError."""
    if not (folder / "sentence_bert_config.json").is_file():
        return None
    tokens = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def positions_of(raw: dict[str, Any], architecture: str) -> int:
    """Longest input in tokens; the Roberta family's positions begin behind the padding index."""
    positions = int(raw.get("max_position_embeddings", 512))
    shifted = architecture.startswith(("Roberta", "XLMRoberta", "MPNet"))
    return positions - (int(raw.get("pad_token_id", 1)) + 1 if shifted else 0)
