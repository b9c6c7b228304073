"""A tokenizer for checkpoints of random weights that are asked over HTTP, as large as a benchmark wants it."""

import random
import string
from pathlib import Path

LONGEST = 14
"""Letters of a token."""


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE of exactly `size` tokens with random merges, in the form of transformers' fast tokenizers.

    Merges are of letters alone, so that nearly every token is text by itself and is told as soon as it is made.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    chance = random.Random(0)
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces, merges = list(string.ascii_lowercase), []
    while len(vocabulary) < size:
        left, right = chance.choice(pieces), chance.choice(pieces)
        if len(left + right) < LONGEST and left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
            pieces.append(left + right)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
