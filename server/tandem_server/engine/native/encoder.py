"""Sentence embeddings: an encoder, or a decoder, of the transformers library, pooled and normalised.

The embedding models' engine: requests are served one after the other in order of arrival, each in batches of inputs
of like length. Weights come from safetensors only, and no code of the checkpoint is ever run.
"""

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from tandem_server.engine.interface import Link, LoadError, ProgressReporter
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import ENCODERS, architecture_of, read_json, refuse_quantised
from tandem_server.engine.native.device import DEFAULT_SLOTS, device_name, open_device
from tandem_server.engine.native.dtype import NAMES
from tandem_server.engine.native.footprints import encoder_footprint
from tandem_server.engine.native.pooling import SentenceHead, read_pooling
from tandem_server.engine.native.pretrained import from_folder
from tandem_server.engine.native.resources import (
    available_bytes,
    check_weights_fit,
    resident_bytes,
    taken_bytes,
    wish_of,
)
from tandem_server.engine.native.sentence import BATCH_TOKENS, POOLER, TASK_HEADS, is_sentence_model
from tandem_server.engine.wire import (
    Abort,
    Embed,
    Embedded,
    Loaded,
    RunnerSpec,
    Stats,
    Stop,
    TokenRow,
    Tokens,
    Trace,
    Traced,
)

log = logging.getLogger("tandem.runner")


class EmbeddingEngine:
    """One resident encoder."""

    def __init__(self, model: Any, head: SentenceHead, loaded: Loaded, vocabulary: int) -> None:
        self.loaded = loaded
        self._model, self._head, self._vocabulary = model, head, vocabulary
        self._device = next(model.parameters()).device
        self._queue: deque[Embed] = deque()
        self._forwards = 0
        self._inputs = 0

    def serve(self, link: Link) -> None:
        """Answers requests in order of arrival until a `Stop`."""
        while True:
            for message in link.receive(None if not self._queue else 0):
                match message:
                    case Stop():
                        return
                    case Embed():
                        self._queue.append(message)
                    case Abort():
                        self._abort(message.request, link)
                    case Trace():
                        link.send(Traced(message.request, []))
                    case _:
                        problem = "this model makes embeddings; it writes no text"
                        link.send(Tokens(self._forwards, [TokenRow(message.request, [], "error", problem)]))
            if self._queue:
                self._answer(self._queue.popleft(), link)

    def _abort(self, request: int, link: Link) -> None:
        """Forgets a request that waits; one that is being answered gets its answer."""
        for waiting in [embed for embed in self._queue if embed.request == request]:
            self._queue.remove(waiting)
            link.send(Tokens(self._forwards, [TokenRow(request, [], "abort")]))

    def _answer(self, embed: Embed, link: Link) -> None:
        size, began, forwards = self.loaded.embedding_size, time.monotonic(), self._forwards
        problem = self._problem(embed.inputs)
        if problem is None:
            vectors = self.embed(embed.inputs)
            if not bool(vectors.isfinite().all()):
                problem = "the model's output for this request was not a number (NaN)"
        if problem is not None:
            link.send(Embedded(embed.request, size, b"", problem))
            return
        link.send(Embedded(embed.request, size, vectors.numpy().astype("<f4", copy=False).tobytes()))
        rate = (self._forwards - forwards) / max(time.monotonic() - began, 1e-9)
        link.send(Stats(self._forwards, rate, self._inputs, len(self._queue), 0.0))

    def _problem(self, inputs: list[list[int]]) -> str | None:
        for index, tokens in enumerate(inputs):
            if not tokens:
                return f"input {index} has no tokens"
            if len(tokens) > self.loaded.context:
                return f"input {index} has {len(tokens)} tokens, the model takes {self.loaded.context}"
            if min(tokens) < 0 or max(tokens) >= self._vocabulary:
                return f"input {index} has a token id outside the vocabulary of {self._vocabulary}"
        return None

    @torch.inference_mode()
    def embed(self, inputs: list[list[int]]) -> torch.Tensor:
        """L2-normalised float32 `[inputs, size]` on the CPU, in the order of `inputs`; none may be empty."""
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        vectors = torch.empty(len(inputs), self.loaded.embedding_size)
        for batch in _batches(order, inputs):
            longest = max(len(inputs[index]) for index in batch)
            tokens = torch.tensor([inputs[index] + [0] * (longest - len(inputs[index])) for index in batch])
            mask = torch.tensor([[1] * len(inputs[i]) + [0] * (longest - len(inputs[i])) for i in batch])
            tokens, mask = tokens.to(self._device), mask.to(self._device)
            states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
            vectors[torch.tensor(batch)] = self._head(states, mask).cpu()
            self._forwards += 1
        self._inputs += len(inputs)
        return vectors


def _batches(order: list[int], inputs: list[list[int]]) -> list[list[int]]:
    """`order` (by rising length) in runs of at most `BATCH_TOKENS` padded tokens, at least one input each."""
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(inputs[index]) <= BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def load_encoder(spec: RunnerSpec, report: ProgressReporter) -> EmbeddingEngine:
    """Loads an encoder. Raises LoadError."""
    folder = Path(spec.path)
    raw = read_json(folder / "config.json")
    architecture = architecture_of(raw)
    refuse_quantised(raw)
    if architecture not in ENCODERS and not is_sentence_model(folder):
        raise LoadError(
            f"task Embed was asked for, but {architecture} makes text (task Generate): it makes embeddings where a "
            f"modules.json says how to pool; without one {', '.join(ENCODERS)} do"
        )
    pooling = read_pooling(folder)
    if spec.quantization != "None":
        raise LoadError(
            f"quantization {spec.quantization} is for models that make text; {architecture} makes embeddings. Set it "
            "to None"
        )
    device = open_device(spec, int(raw.get("hidden_size", 0)) * int(raw.get("intermediate_size", 0)))
    checkpoint = Checkpoint(folder, report)
    footprint, wish = encoder_footprint(folder, raw, architecture, wish_of(spec), checkpoint.stored)
    dtype, limit, context = NAMES[footprint.dtype], footprint.context_limit, wish.context or footprint.context_limit
    largest = footprint.step(1, context)
    needed = footprint.weights + max(footprint.loading, largest)
    check_weights_fit(needed, available_bytes(device, spec.memory_limit), "the weights and the largest step need")
    report("reading weights", 0, checkpoint.total_bytes)
    model = _read_model(folder, dtype, checkpoint.names()).to(device).eval()
    model.config.use_cache = False
    head = SentenceHead(pooling, int(model.config.hidden_size), device)
    report("reading weights", checkpoint.total_bytes, checkpoint.total_bytes)
    parameters = [*model.parameters(), *head.tensors]
    weight_bytes = sum(p.nbytes for p in parameters)
    on_cpu = device.type == "cpu"
    overhead = max(0, resident_bytes() - weight_bytes) + largest if on_cpu else 0
    loaded = Loaded(
        task="Embed",
        architecture=architecture,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=weight_bytes,
        cache_bytes=0,
        overhead_bytes=overhead,
        device=device_name(device),
        device_kind="GPU" if device.type == "cuda" else "CPU",
        dtype=str(dtype).removeprefix("torch."),
        slots=spec.slots or DEFAULT_SLOTS,
        context_limit=limit,
        context=context,
        context_reason=_context_reason(spec, limit),
        embedding_size=head.size,
        engine_reason=f"native engine: {architecture} through the transformers library, {pooling.kind} pooling",
        total_bytes=weight_bytes + overhead if on_cpu else taken_bytes(device) + largest,
    )
    engine = EmbeddingEngine(model, head, loaded, int(model.config.vocab_size))
    engine.embed([[0, 1]])
    return engine


def _context_reason(spec: RunnerSpec, limit: int) -> str:
    if spec.context is not None and spec.context > limit:
        return f"{spec.context} tokens were asked for, the model was made for {limit}"
    return ""


def _read_model(folder: Path, dtype: torch.dtype, names: set[str]) -> Any:
    """The library's model, every weight accounted for."""
    from transformers import AutoModel  # imported late: it takes seconds

    model, info = from_folder(AutoModel, folder, dtype, "the model")
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(POOLER))
    if missing:
        raise LoadError(f"tensor {missing[0]} is missing from the checkpoint ({len(missing)} in all)")
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"])
    if mismatched:
        raise LoadError(f"tensor {mismatched[0]} has another shape than config.json calls for")
    left = sorted(name for name in info["unexpected_keys"] if not name.startswith(TASK_HEADS))
    if left:
        raise LoadError(f"the checkpoint holds tensors that its architecture does not use: {', '.join(left[:3])}")
    log.debug("%d tensors of the checkpoint are read", len(names))
    return model
