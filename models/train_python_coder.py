"""Trains the demo model `python-coder`: a three-million-parameter Llama on the text of Python's standard library.

Run by hand, never by the cluster: `python models/train_python_coder.py --minutes 55 --output models/python-coder`.
It needs torch, transformers and tokenizers, two CPU cores and the interpreter's own library, and no network. With
`--steps` the schedule follows the steps and the run repeats exactly on one machine; with `--minutes` it follows the
clock.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from coder_batches import Corpus, RowSource, bytes_per_token, validation_rows
from coder_chat import BEGIN, END, PAD
from coder_corpus import SourceFile, is_held_out, read_library
from coder_export import export
from coder_tokenizer import train_tokenizer
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 3072
TOKENS_PER_STEP = 8_192
MAIN_LENGTH = 512
# One step in twelve reads rows of 2048 tokens and one in forty rows of 4096, so that long contexts hold together.
LONG_EVERY, LONGEST_EVERY = 12, 40
LONG_LENGTH, LONGEST_LENGTH = 2048, 4096
WARMUP, DECAY_FROM = 0.02, 0.6  # as shares of the run: constant in between, then down to zero in a straight line
MATRIX_RATE, TABLE_RATE, WEIGHT_DECAY = 4e-3, 4e-3, 0.05


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A freshly initialised model: 7 layers of width 192, six query heads of 32 on two key-value heads, tied head."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LONGEST_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 20_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        use_cache=False,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding table and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=TABLE_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def rate_at(progress: float) -> float:
    """Share of the peak learning rate at a point of the run (0 to 1): warm-up, constant, straight decay to zero."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    return min(1.0, max(0.0, (1.0 - progress) / (1.0 - DECAY_FROM)))


def loss_of(model: Callable[..., Any], rows: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy in nats per token of rows of shape [rows, length + 1]."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, rows: torch.Tensor, bf16: bool, per_batch: int = 16) -> float:
    """Mean loss over rows, in nats per token."""
    model.eval()
    losses = [float(loss_of(model, batch, bf16)) * len(batch) for batch in torch.split(rows, per_batch)]
    model.train()
    return sum(losses) / len(rows)


def batches_of(tokenizer: Tokenizer, files: list[SourceFile], seed: int) -> Iterator[torch.Tensor]:
    """Training batches of TOKENS_PER_STEP tokens: mostly short rows, now and then long ones."""
    lengths = (MAIN_LENGTH, LONG_LENGTH, LONGEST_LENGTH)
    corpus = Corpus(tokenizer, files)
    streams = [
        RowSource(corpus, length, seed + index).batches(TOKENS_PER_STEP // length)
        for index, length in enumerate(lengths)
    ]
    step = 0
    while True:
        step += 1
        yield next(streams[2 if step % LONGEST_EVERY == 0 else 1 if step % LONG_EVERY == 0 else 0])


class Progress:
    """How far the run is, by steps when they are given and by the clock otherwise."""

    def __init__(self, minutes: float, steps: int) -> None:
        self.started, self.seconds, self.steps, self.done = time.monotonic(), minutes * 60, steps, 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """Share of the run that is behind, 0 to 1."""
        return min(1.0, self.done / self.steps if self.steps else self.elapsed / self.seconds)

    def line(self, loss: float) -> str:
        """One line for a person: step, loss, speed, time left."""
        left = self.elapsed * (1 - self.share) / max(self.share, 1e-6)
        speed = self.done * TOKENS_PER_STEP / self.elapsed
        return (
            f"step {self.done}: training loss {loss:.3f}, {speed:,.0f} tokens/s, "
            f"{self.done * TOKENS_PER_STEP / 1e6:.1f}M tokens, {self.elapsed / 60:.1f} min gone, {left / 60:.1f} to go"
        )


def train(model: LlamaForCausalLM, tokenizer: Tokenizer, files: list[SourceFile], args: argparse.Namespace) -> None:
    """The loop: batches in, a progress line every 50 steps, a snapshot every few minutes."""
    batches = batches_of(tokenizer, files, args.seed)
    validation = validation_rows(tokenizer, files, MAIN_LENGTH)
    first = next(batches)
    stepper = torch.compile(model, dynamic=False) if args.compile else model
    optimizers = optimizers_of(model)
    torch.autograd.backward(loss_of(stepper, first, args.bf16))  # compiles before the clock starts
    progress = Progress(args.minutes, args.steps)
    smooth, next_snapshot = math.log(VOCABULARY), args.snapshot_minutes * 60.0
    while progress.share < 1.0:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate_at(progress.share)
        loss = loss_of(stepper, next(batches), args.bf16)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        progress.done += 1
        smooth += (float(loss.detach()) - smooth) * max(0.02, 1 / progress.done)
        if progress.done % 50 == 0:
            print(progress.line(smooth), flush=True)
        if progress.elapsed > next_snapshot:
            next_snapshot += args.snapshot_minutes * 60.0
            export(model, tokenizer, args.snapshots)
            print(
                f"snapshot in {args.snapshots}: held-out loss {evaluate(model, validation, args.bf16):.4f}", flush=True
            )
    print(progress.line(smooth), flush=True)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step: asking the system anew made steps several times slower."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of glibc's malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model on the interpreter's standard library.")
    parser.add_argument("--minutes", type=float, default=55.0, help="length of the run by the clock (55)")
    parser.add_argument("--steps", type=int, default=0, help="length of the run in steps, in place of --minutes")
    parser.add_argument("--output", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="folder to learn")
    parser.add_argument("--snapshots", type=Path, default=Path(tempfile.gettempdir()) / "python-coder-snapshot")
    parser.add_argument("--snapshot-minutes", type=float, default=4.0, help="time between snapshots (4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--seed", type=int, default=20, help="seed of weights and data (20)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="compute in bfloat16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    return parser.parse_args()


def main() -> None:
    """Read the library, train tokenizer and model, write the folder, and print what it came to."""
    args = parse_arguments()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    files = read_library(args.library)
    training = [file.text for file in files if not file.is_test and not is_held_out(file)]
    tokenizer = train_tokenizer(training, VOCABULARY)
    model = new_model(tokenizer)
    print(
        f"{len(training)} library files ({sum(map(len, training)) / 1e6:.1f}M characters), "
        f"{sum(file.is_test for file in files)} test files, {sum(map(is_held_out, files))} files held out, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters",
        flush=True,
    )
    train(model, tokenizer, files, args)
    export(model, tokenizer, args.output)
    ratio = bytes_per_token(tokenizer, files)
    for length in (MAIN_LENGTH, LONG_LENGTH, LONGEST_LENGTH):
        loss = evaluate(model, validation_rows(tokenizer, files, length), args.bf16, per_batch=8192 // length)
        print(
            f"held-out loss at {length} tokens: {loss:.4f} nats per token, {loss / math.log(2) / ratio:.4f} bits/byte"
        )


if __name__ == "__main__":
    main()
