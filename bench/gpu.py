"""The native engine on a GPU against what the GPU can do, against its own plain loop, and against transformers.

`make bench-gpu`, or `python bench/gpu.py [--shapes 0.6B 8B] [--requests 1 64 8 256] [--rounds 2] [--seconds 600]
[--profile] [--no-peer]`. Random weights, prompts of 1024 tokens, 256 new ones, sampled. Bandwidth and matmul rate are
measured in the same run. Prints each result at once, and as its last line one JSON object; what there is no time for
is left out and said.
"""

import argparse
import gc
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from gpu_figures import SHAPES, Roof, Shape, Steps, decode_bound, predicted_gain, prefill_operations, steps_of
from timeline import TracedLoad

# isort: split
import torch
from safetensors.torch import save_file

from tandem_server.engine.interface import DoesNotFit
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.timeline import device_idle_share
from tandem_server.engine.wire import Add, RunnerSpec, Sampling

PROMPT, NEW = 1024, 256
PEER_SECONDS = 90.0
Aim = dict[str, Any]


def measure_roof(device: torch.device, size: int) -> Roof:
    """Best of several: a copy within the device's memory, and a product of bf16 matrices of `size`."""
    source = torch.empty(1 << 30 if size > 1024 else 1 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def best(run: Any) -> float:
        times = []
        for _ in range(12):
            synchronize(device)
            began = time.perf_counter()
            for _ in range(4):
                run()
            synchronize(device)
            times.append((time.perf_counter() - began) / 4)
        return min(times)

    return Roof(2 * source.nbytes / best(lambda: target.copy_(source)), 2 * size**3 / best(lambda: left @ right))


def synchronize(device: torch.device) -> None:
    """Waits for the device, if it is one that runs by itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_checkpoint(shape: Shape, folder: Path, device: torch.device) -> Path:
    """A Qwen3 checkpoint of random bf16 weights."""
    heads, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    sizes["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    for name in (f"model.layers.{index}" for index in range(shape.layers)):
        for part, size in {
            "self_attn.q_proj": (heads, shape.hidden),
            "self_attn.k_proj": (keys, shape.hidden),
            "self_attn.v_proj": (keys, shape.hidden),
            "self_attn.o_proj": (shape.hidden, heads),
            "self_attn.q_norm": (shape.head_size,),
            "self_attn.k_norm": (shape.head_size,),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
            "input_layernorm": (shape.hidden,),
            "post_attention_layernorm": (shape.hidden,),
        }.items():
            sizes[f"{name}.{part}.weight"] = size
    torch.manual_seed(0)
    tensors = {}
    for name, size in sizes.items():
        weight = torch.ones(size, dtype=torch.bfloat16)
        if len(size) == 2:
            weight = (torch.randn(size, device=device, dtype=torch.bfloat16) * size[1] ** -0.5).cpu()
        tensors[name] = weight
    save_file(tensors, folder / "model.safetensors")
    return folder


def prompts_of(seed: int, count: int, vocabulary: int, length: int) -> list[list[int]]:
    """Of one length, all different."""
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def run(engine: NativeEngine, overlapped: bool, prompts: list[list[int]], new: int) -> tuple[float, TracedLoad]:
    """Tokens a second from the first request to the last token, and the front end with the timeline in it."""
    adds = [
        Add(number, prompt, new, Sampling(temperature=0.8, top_k=40, top_p=0.9, seed=number))
        for number, prompt in enumerate(prompts)
    ]
    engine.overlapped = overlapped
    load = TracedLoad(adds, len(adds))
    began = time.perf_counter()
    engine.serve(load)
    seconds = time.perf_counter() - began
    assert load.tokens == len(prompts) * new, f"{load.tokens} tokens came, not {len(prompts) * new}"
    return load.tokens / seconds, load


def load_engine(folder: Path, requests: list[int], context: int, device: str) -> tuple[NativeEngine, list[int]]:
    """With as many slots as fit: the largest number of requests that is left, and those numbers."""
    while True:
        spec = RunnerSpec("bench", str(folder), "", device=device, slots=requests[-1], context=context)
        try:
            return load_generator(spec, lambda *_: None), requests
        except DoesNotFit as error:
            print(f"{requests[-1]} requests do not fit: {error}", flush=True)
            if len(requests) == 1:
                raise
            requests = requests[:-1]


def measure(shape: Shape, folder: Path, roof: Roof, options: argparse.Namespace) -> tuple[list[Aim], dict[int, float]]:
    """The aims of one model, and the overlapped token rate at each number of requests."""
    began = time.perf_counter()
    engine, fitting = load_engine(folder, sorted(options.requests), options.prompt + options.new, options.device)
    seconds, size = time.perf_counter() - began, engine.loaded.weight_bytes
    print(f"{shape.name} on {engine.loaded.device}: {engine.loaded.engine_reason}", flush=True)
    print(f"loaded in {seconds:.1f} s, {size / 1e9:.2f} GB of weights, graphs and all", flush=True)
    aims, rates = [], {}
    run(engine, True, prompts_of(0, fitting[-1], shape.vocabulary, min(64, options.prompt)), min(8, options.new))
    for count in [count for count in options.requests if count in fitting]:
        found: dict[bool, list[tuple[float, Steps, float]]] = defaultdict(list)
        for number in range(options.rounds):
            if time.monotonic() > options.end:
                break
            prompts = prompts_of(number + 1, count, shape.vocabulary, options.prompt)
            for overlapped in (True, False) if number % 2 else (False, True):
                rate, load = run(engine, overlapped, prompts, options.new)
                assert load.steps is not None
                idle = device_idle_share([r for r in load.steps if not r.prompt_tokens])
                steps = steps_of(load.steps, count)
                found[overlapped].append((rate, steps, idle))
                print(
                    f"{shape.name}, {count} requests, {'overlapped' if overlapped else 'plain'}: {rate:.0f} tok/s; "
                    f"decode step {steps.device * 1e3:.3f} ms on the device, {steps.host * 1e3:.3f} ms of the host, "
                    f"one each {steps.period * 1e3:.3f} ms; idle {idle:.1%}",
                    flush=True,
                )
        if not found:
            print(f"{shape.name}, {count} requests: left out, the time is up", flush=True)
            continue
        own = aims_of(shape, count, found, roof, options)
        print("\n".join(f"  {row['aim']}: {row['value']} ({row['target']})" for row in own), flush=True)
        aims += own
        rates[count] = statistics.median(rate for rate, _, _ in found[True])
        if options.profile:
            print(profile(engine, prompts_of(0, count, shape.vocabulary, options.prompt), options.new), flush=True)
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return aims, rates


def profile(engine: NativeEngine, prompts: list[list[int]], new: int) -> str:
    """Which kernels the device spends its time on: a table of a short run, prompts and decode steps together."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    try:
        with torch.profiler.profile(activities=kinds) as profiler:
            run(engine, True, prompts, min(32, new))
    except RuntimeError as error:
        return f"there is no profile: {error}"
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


def aims_of(
    shape: Shape, count: int, found: dict[bool, list[tuple[float, Steps, float]]], roof: Roof, options: Any
) -> list[Aim]:
    """From one number of requests' rounds."""
    title = f"{shape.name}, {count} at once"
    overlapped, plain = found[True], found[False]
    bound = decode_bound(shape, count, options.prompt + options.new / 2, roof)
    operations = prefill_operations(shape, count * options.prompt, options.prompt)
    gains = [
        (one.period / two.period) / predicted_gain(one)
        for (_, one, _), (_, two, _) in zip(plain, overlapped, strict=True)
    ]
    host = [steps.host * 1e3 for _, steps, _ in overlapped]
    return [
        aim(f"{title}: decode, share of the bound of bytes or products", [bound / s.device for _, s, _ in overlapped],
            ">= 0.75", 0.75),
        aim(f"{title}: prefill, share of the matmul rate",
            [operations / s.prefill / roof.matmul for _, s, _ in overlapped], ">= 0.6", 0.6),
        aim(f"{title}: overlap's gain over the one predicted from D and H", gains, ">= 0.97", 0.97),
        aim(f"{title}: overlapped, device idle while decoding", [idle for *_, idle in overlapped],
            "< 0.03", None, 0.03),
        aim(f"{title}: plain, device idle while decoding", [idle for *_, idle in plain], "report"),
        aim(f"{title}: the host's work a step, ms", host, "report"),
        aim(f"{title}: tokens a second", [rate for rate, *_ in overlapped], "report"),
    ]  # fmt: skip


def aim(title: str, values: list[float], target: str, least: float | None = None, most: float | None = None) -> Aim:
    """One row of the result."""
    value = statistics.median(values)
    ok = (
        None if least is None and most is None else (least is None or value >= least) and (most is None or value < most)
    )
    digits = 4 if value < 10 else 0
    return {
        "aim": title,
        "value": round(value, digits),
        "spread": [round(min(values), digits), round(max(values), digits)],
        "target": target,
        "ok": ok,
    }


def peer_aims(shape: Shape, folder: Path, rates: dict[int, float], options: argparse.Namespace) -> list[Aim]:
    """Ours against transformers' continuous batching, a process each; the first that cannot run ends it, with why."""
    aims = []
    for count, rate in rates.items():
        left = min(PEER_SECONDS, options.end - time.monotonic())
        if left <= 0:
            print(f"transformers, {shape.name}, {count} requests: left out, the time is up", flush=True)
            break
        given = {"model": str(folder), "requests": count, "prompt": options.prompt, "new": options.new}
        command = [sys.executable, str(Path(__file__).with_name("peer_continuous.py")), json.dumps(given)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=True)
            theirs = float(json.loads(done.stdout.strip().splitlines()[-1])["rate"])
        except (subprocess.SubprocessError, ValueError, KeyError, IndexError) as error:
            log = getattr(error, "stderr", None) or ""
            print(f"transformers could not run {shape.name}, {count} requests: {error}\n{str(log)[-2000:]}", flush=True)
            break
        print(f"{shape.name}, {count} requests: {rate:.0f} tok/s, transformers {theirs:.0f}", flush=True)
        title = f"{shape.name}, {count} at once: token rate over transformers' continuous batching"
        aims.append(aim(title, [rate / theirs], ">= 1.5", 1.5))
    return aims


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["0.6B", "8B"])
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 64, 8, 256], help="in this order")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--new", type=int, default=NEW)
    parser.add_argument("--device", choices=["CPU", "GPU"], default="GPU", help="CPU only shows that it runs")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no run after so many")
    parser.add_argument("--profile", action="store_true", help="a table of kernels for each number of requests")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    options = parser.parse_args()
    options.end = time.monotonic() + options.seconds
    device = torch.device("cuda" if options.device == "GPU" else "cpu")
    roof = measure_roof(device, 8192 if options.device == "GPU" else 512)
    print(f"copy {roof.bandwidth / 1e12:.3f} TB/s, matmul {roof.matmul / 1e12:.1f} TFLOP/s in bf16", flush=True)
    aims: list[Aim] = []
    for shape in (SHAPES[name] for name in options.shapes):
        with tempfile.TemporaryDirectory(dir=roomy_folder(shape)) as scratch:
            folder = random_checkpoint(shape, Path(scratch), device)
            own, rates = measure(shape, folder, roof, options)
            aims += own + ([] if options.no_peer else peer_aims(shape, folder, rates, options))
    machine = torch.cuda.get_device_name(0) if options.device == "GPU" else platform.machine()
    machine += f", copy {roof.bandwidth / 1e12:.2f} TB/s, matmul {roof.matmul / 1e12:.0f} TFLOP/s"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"name": "gpu", "machine": machine, "versions": versions, "aims": aims}))


def roomy_folder(shape: Shape) -> str | None:
    """Memory rather than a disk, where it holds the checkpoint twice."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder with a random name is made in it
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 5 * shape.multiplied else None


if __name__ == "__main__":
    main()
