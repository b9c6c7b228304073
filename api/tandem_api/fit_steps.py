"""What contexts and steps take beside the weights: blocks of the cache, intermediate results, CUDA graphs. Pure.

Below `fit`. The engine allocates by the same functions, so what is foretold is what is taken.
"""

from dataclasses import dataclass

BLOCK = 32
"""Positions of a block of the cache; measured, see `docs/decisions/0003-engine.md`."""
SPAN = 512
"""Torch's CPU attention works through keys in blocks of 512; spans of other lengths may sum in another order."""
SCORES_AT_ONCE = 64
"""Queries whose scores against all keys are held at once, where attention is not the library's (caps, sinks)."""
CPU_CHUNK, CPU_BUDGET = 256, 512
"""Prompt tokens that go in at once, of one request and of all."""
CUDA_CHUNK, CUDA_BUDGET = 2048, 8192
SAMPLER_BYTES_PER_LOGIT = 64
"""Logits, their penalised and sorted copies with ids, shares, noise and its making, counts of tokens; measured."""
BYTES_PER_GRAPH = 8 << 20
"""The driver's own, beside torch's allocator: some 600 kernels; assumed, not measured."""
LEAST_SHARE = 128
"""Keys of a share at least: below this, writing and joining partial results costs more than parallel reading gains."""
MOST_PROCESSORS = 160
"""Multiprocessors assumed of a GPU that is not at hand: more than any has today, for more take more memory."""


def capacity_for(context: int) -> int:
    """Positions that a slot of `context` tokens holds: whole spans, for attention reads whole spans."""
    grain = 64 if context < SPAN else SPAN
    return -(-context // grain) * grain


def cache_positions(slots: int, context: int) -> int:
    """Positions of the whole cache: the slots' own, and one block that rows without a request write to."""
    return slots * capacity_for(context) + BLOCK


def power_of_two(least: int) -> int:
    """The smallest that is not below `least`."""
    return 1 << (least - 1).bit_length()


def attention_shares(kv_heads: int, processors: int, capacity: int, least_share: int = LEAST_SHARE) -> int:
    """Programs that a sequence of `capacity` positions is cut into at most on a GPU.

    Two programs a processor for one sequence alone; it must not depend on the batch, or a row's bits would.
    """
    parallel = -(-2 * processors // kv_heads)
    return max(1, min(power_of_two(parallel), -(-capacity // least_share)))


def batch_sizes(slots: int) -> tuple[int, ...]:
    """Rows for which a CUDA graph is made, ascending and ending with `slots`.

    A step computes the first size that holds its rows: less than half of it is in vain, from 32 rows up less than a
    fifth.
    """
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, slots, 64)]
    return (*(size for size in sizes if size < slots), slots)


@dataclass(frozen=True)
class StepShape:
    """What the size of a decoder's intermediate results depends on."""

    hidden: int
    qkv_width: int
    """Columns of the fused query, key and value projection."""
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    windows: int = 1
    """Different windows of attention, each with masks of its own."""
    plain_attention: bool = True
    """The scores are never there as a whole."""
    turned: int = 0
    """Numbers of the tables of positions, for each position."""
    switches: bool = False
    """Every token of each sequence is kept (longrope)."""

    @property
    def widths(self) -> int:
        """A row's input, its normed copy, residual and output; projections, turned and joined; gate, up, product."""
        return 6 * self.hidden + 5 * self.qkv_width + 5 * self.intermediate

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads


def step_bytes(shape: StepShape, slots: int, chunk: int, itemsize: int, context: int) -> int:
    """Bound of what one step takes at its worst: a whole prompt chunk at the context's end, and all slots decoding.

    Both are in one step, so both count, and so does a sampler that sorts the vocabulary for every slot.
    """
    # A mask is made of bools and then of numbers; attention may want a copy of the latter. One for each window.
    masks = shape.windows * context * (2 * itemsize + 1)
    # Scores in float32, with a sink, as shares, and as shares in the number format.
    scores = 0 if shape.plain_attention else 4 * 4 * shape.heads * min(chunk, SCORES_AT_ONCE) * context
    rows = (chunk + slots) * (shape.widths * itemsize + masks)
    return scores + rows + slots * shape.vocabulary * SAMPLER_BYTES_PER_LOGIT


def graph_bytes(shape: StepShape, slots: int, itemsize: int, workspace: int, graphs: int) -> int:
    """What CUDA graphs of the decode step hold for good: their results, what lies in between, and themselves.

    Args:
        shape: of the decoder.
        slots: rows of the largest graph; smaller ones use its memory.
        itemsize: bytes of a number of the computation.
        workspace: of attention's partial results.
        graphs: how many are recorded at load.
    """
    logits = shape.vocabulary * (itemsize + 4 + SAMPLER_BYTES_PER_LOGIT)
    return slots * (shape.widths * itemsize + logits) + workspace + graphs * BYTES_PER_GRAPH


def workspace_bytes(shape: StepShape, rows: int, shares: int) -> int:
    """Memory of the partial results of attention for `rows` sequences that are cut into `shares`."""
    return rows * shape.heads * shares * (shape.head_size + 2) * 4


def table_bytes(shape: StepShape, slots: int, itemsize: int, context: int) -> int:
    """What is kept by position beside keys and values: tables of positions, their numbers, and block tables."""
    capacity = capacity_for(context)
    own = 8 * (context + 1) * shape.switches + 4 * capacity // BLOCK
    return capacity * (shape.turned * itemsize + 8) + 8 * capacity // BLOCK + slots * own


@dataclass(frozen=True)
class Steps:
    """Of one decoder in given formats on one device: what all steps take beside weights and contexts."""

    shape: StepShape
    itemsize: int
    """Bytes of a number of the computation."""
    on_gpu: bool = False
    unpacked: int = 0
    """Bytes of the largest quantised matrix in the computation's format, where a step has to make one."""
    processors: int = MOST_PROCESSORS
    together: int = 0
    """Rows of prompts that share a forward, where they are more than a chunk's."""

    @property
    def chunk(self) -> int:
        """Prompt tokens of one request that go in at once."""
        return CUDA_CHUNK if self.on_gpu else CPU_CHUNK

    def bytes(self, slots: int, context: int) -> int:
        """The largest step's, what graphs hold, and tables by position."""
        shape = self.shape
        total = step_bytes(shape, slots, self.chunk, self.itemsize, context) + self.unpacked
        total += table_bytes(shape, slots, self.itemsize, context)
        total += max(0, self.together - self.chunk) * shape.widths * self.itemsize
        if self.on_gpu:
            shares = attention_shares(shape.kv_heads, self.processors, capacity_for(context))
            workspace = workspace_bytes(shape, slots, shares)
            total += graph_bytes(shape, slots, self.itemsize, workspace, len(batch_sizes(slots)))
        return total
