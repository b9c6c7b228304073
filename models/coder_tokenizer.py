"""Tokenizer of the demo model: byte-level BPE, trained on the same text as the model.

Any text encodes, since every byte is a token of last resort. A line break and the indentation after it form one token,
which is where a vocabulary of three thousand earns most on Python code.
"""

from __future__ import annotations

from collections.abc import Iterable

from coder_chat import BEGIN, SPECIAL_TOKENS
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

# Line breaks with the indentation that follows | runs of blanks | a word | up to three digits | signs | other blanks
WORDS = r"[\r\n]+ *| {2,}| ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a tokenizer of exactly `vocabulary` entries (special tokens first, then the 256 bytes, then merges).

    Plain text is encoded with the begin token in front; chats are rendered by the template, which brings its own, and
    must be encoded with `add_special_tokens=False`.
    """
    tokenizer = Tokenizer(BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(WORDS), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the text yields {tokenizer.get_vocab_size()} tokens, not the {vocabulary} asked for")
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return tokenizer
