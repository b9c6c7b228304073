"""The sampler's usual ways on a CPU in one call: greedy, from the whole vocabulary, by top_k, top_p and min_p.

Between `sampler.py` and `sample.h` of `cpu_kernels`; `cpu_step.py` draws by the same. torch's operators pass through
the scores several times, and each comes anew from memory while a step's weights fill the caches: at batch 1 they took
a tenth of a step. A row's way is its own parameters' alone, whatever the rows beside it ask for.
"""

import ctypes

import torch

from tandem_server.engine.native.cpu_compiler import library_of

CANDIDATE_BYTES = 8


class Draw(ctypes.Structure):
    """`Draw` of `sample.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "numbers", "integers", "positions", "taken")),
        *((name, ctypes.c_void_p) for name in ("tokens", "finite", "last", "room")),
        *((name, ctypes.c_int64) for name in ("rows", "vocabulary", "threads")),
    )


class CompiledDraw:
    """Of a sampler whose state by slot is `numbers` float32 `[slots, 7]` and `integers` int64 `[slots, 6]`.

    Raises NotCompiled.
    """

    def __init__(self, numbers: torch.Tensor, integers: torch.Tensor, vocabulary: int) -> None:
        self._kernel = library_of("sample.c").tandem_draw
        self._numbers, self._integers = numbers, integers
        self._threads, self._vocabulary = torch.get_num_threads(), vocabulary
        self._room = torch.empty(self._threads, vocabulary, CANDIDATE_BYTES, dtype=torch.uint8)

    def __call__(
        self, scores: torch.Tensor, positions: torch.Tensor, taken: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the first rows, int64 `[rows]`, and whether their scores were finite; see `Sampler.sample`.

        The token is 0 where a row is not taken, not finite, or drawn by torch.
        """
        rows, scores = len(scores), scores.contiguous()
        tokens, finite = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
        addresses = (tensor.data_ptr() for tensor in (scores, positions, taken, tokens, finite))
        self._kernel(ctypes.byref(self.struct(rows, *addresses)))
        return tokens, finite

    def struct(
        self, rows: int, scores: int, positions: int, taken: int, tokens: int, finite: int, last: int | None = None
    ) -> Draw:
        """What the kernel takes, of addresses; whoever asks keeps what stands there."""
        own = (self._numbers.data_ptr(), self._integers.data_ptr())
        outputs = (tokens, finite, last, self._room.data_ptr())
        return Draw(scores, *own, positions, taken, *outputs, rows, self._vocabulary, self._threads)
