"""transformers' `generate` as a peer of `bench/engine.py`: jobs as JSON lines on standard input, one answer each.

Called with one argument, a JSON object: model, dtype (bfloat16 or float32), answers (a file descriptor).
"""

import json
import os
import sys
import time

import torch
import transformers


def main() -> None:
    """Loads, then answers until standard input ends."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(given["model"], dtype=getattr(torch, given["dtype"]))
    model.eval()
    # The checkpoint's own end and limits must not end an answer early.
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    with os.fdopen(given["answers"], "w", buffering=1) as answers:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        answers.write(json.dumps({"versions": versions}) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(run(model, json.loads(line))) + "\n")


def run(model: transformers.PreTrainedModel, job: dict) -> dict:  # type: ignore[type-arg]
    """All prompts of a job as one batch; they are of one length."""
    sampling = {"do_sample": False}
    if job["seed"] is not None:
        torch.manual_seed(job["seed"] % 2**31)
        sampling = {"do_sample": True, **{name: job[name] for name in ("temperature", "top_k", "top_p")}}
    began = time.perf_counter()
    ids = torch.tensor(job["prompts"])
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=job["new"],
            min_new_tokens=job["new"],
            **sampling,
        )
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": int(made.shape[0] * (made.shape[1] - ids.shape[1]))}


if __name__ == "__main__":
    main()
