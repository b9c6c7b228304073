"""The overlapped loop against the plain one: token rates of the same requests, interleaved, on one resident model.

`make bench-overlap`, or `python bench/overlap.py [--model FOLDER] [--device GPU] [--slots 4] [--rounds 7]`. Without a
model it makes a random one (requests then sample: greedy decoding of random weights runs in circles). Prints each
round, and as its last line one JSON object.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

import tandem_server.engine  # noqa: F401 - before torch: it sets how OpenMP's threads wait

# isort: split
import torch
from safetensors.torch import save_file

from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.wire import Add, FromRunner, RunnerSpec, Sampling, Stats, Stop, TokenRow, Tokens, ToRunner

SHAPES = {
    "CPU": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 8192, "heads": 6},
    "GPU": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 65536, "heads": 16},
}
TARGET = {"CPU": 0.95, "GPU": 1.0}
"""On a CPU the host's work takes cores from the device's, so the aim is that overlap costs nothing."""


class Load:
    """A front end that keeps every slot busy: each end of a request sends the next one, as admission would."""

    def __init__(self, requests: list[Add], slots: int) -> None:
        self._inbox: deque[ToRunner] = deque(requests[:slots])
        self._rest = deque(requests[slots:])
        self._open = len(requests)
        self.tokens = 0
        self.idle_shares: list[float] = []

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """What is due; `Stop` when all requests have ended."""
        if not self._open:
            return [Stop()]
        due = list(self._inbox)
        self._inbox.clear()
        return due

    def send(self, message: FromRunner) -> None:
        """Counts tokens."""
        if isinstance(message, Stats) and message.busy:
            self.idle_shares.append(message.device_idle_share)
        for row in message.rows if isinstance(message, Tokens) else []:
            self._take(row)

    def _take(self, row: TokenRow) -> None:
        self.tokens += len(row.tokens)
        if row.finish:
            self._open -= 1
            if self._rest:
                self._inbox.append(self._rest.popleft())


def random_model(folder: Path, device: str) -> Path:
    """A Llama checkpoint of random bf16 weights."""
    shape = dict(SHAPES[device])
    heads = shape.pop("heads")
    hidden, wide, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = hidden // 2
    config = {
        "architectures": ["LlamaForCausalLM"],
        **shape,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    sizes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in (f"model.layers.{index}" for index in range(shape["num_hidden_layers"])):
        for name, outputs, inputs in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            sizes[f"{layer}.{name}.weight"] = (outputs, inputs)
        for name in ("input_layernorm", "post_attention_layernorm"):
            sizes[f"{layer}.{name}.weight"] = (hidden,)
    torch.manual_seed(0)
    tensors = {
        name: torch.ones(size) if len(size) == 1 else torch.randn(size) * size[-1] ** -0.5
        for name, size in sizes.items()
    }
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def requests_of(seed: int, count: int, vocabulary: int) -> list[Add]:
    """Prompts of 8 to 64 tokens, answers of 32 to 128, sampled with a filter and a seed."""
    rng = random.Random(seed)
    return [
        Add(
            number,
            [rng.randrange(vocabulary) for _ in range(rng.randint(8, 64))],
            rng.randint(32, 128),
            Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=rng.getrandbits(60)),
        )
        for number in range(count)
    ]


def tokens_per_second(engine: NativeEngine, requests: list[Add], slots: int) -> tuple[float, float]:
    """Rate of one run, and the device's mean idle share."""
    load = Load(requests, slots)
    began = time.perf_counter()
    engine.serve(load)
    seconds = time.perf_counter() - began
    return load.tokens / seconds, statistics.fmean(load.idle_shares) if load.idle_shares else float("nan")


def measure(model: Path, arguments: argparse.Namespace) -> list[float]:
    """Overlapped rate over plain rate, round by round; within a round the order alternates."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    spec = RunnerSpec(
        "bench", str(model), "", device=arguments.device, slots=arguments.slots, context=1024, threads=arguments.threads
    )
    engine = load_generator(spec, lambda *_: None)
    print(f"{engine.loaded.device}, {engine.loaded.parameters / 1e6:.1f} M parameters; {engine.loaded.engine_reason}")
    ratios = []
    for round_number in range(arguments.rounds + 1):
        requests = requests_of(round_number, arguments.requests, vocabulary)
        rates: dict[bool, tuple[float, float]] = {}
        for overlapped in (True, False) if round_number % 2 else (False, True):
            engine.overlapped = overlapped
            rates[overlapped] = tokens_per_second(engine, requests, arguments.slots)
        if round_number:  # the first round warms up
            ratios.append(rates[True][0] / rates[False][0])
            print(
                f"round {round_number}: plain {rates[False][0]:.0f} tok/s (device idle {rates[False][1]:.0%}), "
                f"overlapped {rates[True][0]:.0f} tok/s (idle {rates[True][1]:.0%}), ratio {ratios[-1]:.3f}",
                flush=True,
            )
    return ratios


def cpu_name() -> str:
    """Model and vector extensions, which decide the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return (
        f"{fields.get('model name', platform.machine())}, {torch.get_num_threads()} threads, {' '.join(sorted(flags))}"
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint's folder; default: a random one")
    parser.add_argument("--device", choices=["CPU", "GPU"], default="GPU" if torch.cuda.is_available() else "CPU")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--threads", type=int, help="CPU threads; default: what the container has")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure(arguments.model or random_model(Path(folder), arguments.device), arguments)
    value, target = statistics.median(ratios), TARGET[arguments.device]
    aim = {
        "aim": f"overlapped over plain token rate, {arguments.slots} slots, {arguments.device}",
        "value": round(value, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "target": f">= {target}",
        "ok": value >= target,
    }
    machine = cpu_name() if arguments.device == "CPU" else torch.cuda.get_device_name(0)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"name": "overlap", "machine": machine, "versions": versions, "aims": [aim]}))


if __name__ == "__main__":
    main()
