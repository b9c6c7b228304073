"""What stands in for a GPU in the tests of its step: kernels in plain torch, graphs whose memory is really shared."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from tandem_server.engine.native.blocks import BLOCK
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.timeline import DeviceTimes


class TorchKernels:
    """As `PagedAttention`, row by row in float64; what has no block table or lies beyond a length is never read."""

    @classmethod
    def of(cls, config, cache, operand):
        return cls()

    prompt_tokens = 8

    def turn_and_write(self, projected, norms, epsilon, rope, layer, tables, lengths, starts=None, seats=None):
        rows, width, size = projected.shape
        kv = len(layer) // 2
        heads = width - 2 * kv
        cosines, sines = rope
        turning = cosines.shape[1]
        query = torch.full((rows, kv, heads // kv, size), float("nan"), dtype=projected.dtype)
        for row, length in enumerate(lengths.tolist()):
            if not length:
                continue
            qk = projected[row, : heads + kv].double()
            if norms[0] is not None:
                qk = qk / (qk.square().mean(-1, keepdim=True) + epsilon).sqrt()
                qk = torch.cat((qk[:heads] * norms[0], qk[heads:] * norms[1]))
            seat = row if seats is None else int(seats[row])
            at = length - 1 + (0 if starts is None else int(starts[seat]))
            part = qk[:, :turning]
            part = part * cosines[at] + part.roll(turning // 2, -1) * sines[at]
            qk = torch.cat((part, qk[:, turning:]), -1).to(projected.dtype)
            place = _places(tables, seat, torch.tensor([length - 1]))
            layer[:, place[0]] = torch.cat((qk[heads:], projected[row, heads + kv :])).to(layer.dtype)
            query[row] = qk[:heads].view(kv, -1, size)
        return query

    def attend(self, query, layer, tables, lengths, *, scale, cap=None, window=None, sinks=None):
        mixed = torch.zeros_like(query)
        kv = query.shape[1]
        for row, length in enumerate(lengths.tolist()):
            if not length:
                continue
            positions = torch.arange(max(0, length - window) if window else 0, length)
            own = layer[:, _places(tables, row, positions)].double()
            scores = query[row].double() @ own[:kv].transpose(1, 2) * scale
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if sinks is not None:
                scores = torch.cat((scores, sinks.double().view(kv, -1, 1)), -1)
            mixed[row] = (scores.softmax(-1)[..., : len(positions)] @ own[kv:]).to(query.dtype)
        return mixed

    def attend_prompt(self, query, layer, tables, work, **options):
        mixed = torch.full_like(query, float("nan"))
        for first, seat, start, count in work.tolist():
            assert count <= self.prompt_tokens
            rows = slice(first, first + count)
            lengths = torch.arange(start + 1, start + count + 1)
            mixed[rows] = self.attend(query[rows], layer, tables[seat].expand(count, -1), lengths, **options)
        return mixed


def _places(tables, row, positions):
    return tables[row].long()[positions // BLOCK] * BLOCK + positions % BLOCK


class SharedMemoryGraphs:
    """Graphs as CUDA has them: the same result tensors each time, and one memory for all of them.

    What a graph computes in between may lie where the results of graphs recorded after it lie, so its replay makes
    those unusable.
    """

    def __init__(self) -> None:
        self.replayed = 0
        self.replaying = False
        self._results: list[list[torch.Tensor]] = []

    @property
    def recorded(self) -> int:
        return len(self._results)

    def record(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        number, results = len(self._results), None
        self._results.append([])

        def replay() -> Any:
            nonlocal results
            self.replayed += 1
            self.replaying = True
            for later in self._results[number + 1 :]:
                for tensor in later:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else -999)
            fresh = compute()
            if results is None:
                results, self._results[number] = fresh, _tensors(fresh)
            else:
                for old, new in zip(self._results[number], _tensors(fresh), strict=True):
                    old.copy_(new)  # the same memory, where it is a buffer
            self.replaying = False
            return results

        return replay


def _tensors(results: Any) -> list[torch.Tensor]:
    assert is_dataclass(results)
    found = [getattr(results, field.name) for field in fields(results)]
    return [tensor for tensor in found if tensor is not None]


class LateExecutor:
    """Computes at the launch but reads the outcome only when asked, as a copy on a side stream may come late."""

    def __init__(self, compute: Callable[[StepPlan], Any]) -> None:
        self._compute = compute
        self.device_seconds = 0.0

    def launch(self, plan: StepPlan) -> "_Late":
        return _Late(self._compute(plan))

    def close(self) -> None:
        pass


class _Late:
    times = DeviceTimes(0.0, 0.0, 0.0)

    def __init__(self, output: Any) -> None:
        self._output = output

    def result(self) -> StepResult:
        return self._output.to_host()
