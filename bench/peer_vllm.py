"""vLLM's CPU build as a peer of `bench/engine.py`: jobs as JSON lines on standard input, one answer each.

Run by the Python of vLLM's own environment (`make env-vllm`), with one argument, a JSON object: model, dtype, slots,
context, answers (a file descriptor). Compiled by inductor where there is a C++ compiler, its default; eager otherwise.
"""

import json
import os
import shutil
import sys
import time
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams


def main() -> None:
    """Loads, then answers until standard input ends."""
    given = json.loads(sys.argv[1])
    eager = shutil.which("g++") is None
    engine = LLM(
        model=given["model"],
        dtype=given["dtype"],
        max_model_len=given["context"],
        max_num_seqs=given["slots"],
        skip_tokenizer_init=True,
        enforce_eager=eager,
    )
    with os.fdopen(given["answers"], "w", buffering=1) as answers:
        how = "eager" if eager else "compiled"
        versions = {"vllm": f"{vllm.__version__} ({how}, torch {torch.__version__})"}
        answers.write(json.dumps({"versions": versions}) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(run(engine, json.loads(line))) + "\n")


def run(engine: LLM, job: dict[str, Any]) -> dict[str, float]:
    """All prompts of a job at once. No seed for sampling: vLLM draws seeded requests one by one, which is slower."""
    sampling: dict[str, Any] = {"temperature": 0.0}
    if job["seed"] is not None:
        sampling = {name: job[name] for name in ("temperature", "top_k", "top_p")}
    wanted = SamplingParams(max_tokens=job["new"], ignore_eos=True, detokenize=False, **sampling)
    began = time.perf_counter()
    made = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], wanted, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": sum(len(answer.outputs[0].token_ids) for answer in made)}


if __name__ == "__main__":
    main()
