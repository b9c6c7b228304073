"""transformers' continuous batching as a peer of `bench/gpu.py`: one job, given as a JSON object, one answer.

Keys of the object: model (a folder), requests, prompt and new (tokens of each). Warms up with one request first.
"""

import json
import random
import sys
import time

import torch
import transformers


def main() -> None:
    """Prints tokens a second as the last line."""
    given = json.loads(sys.argv[1])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model.to("cuda").eval()
    rng = random.Random(1)
    vocabulary = model.config.vocab_size
    prompts = [[rng.randrange(vocabulary) for _ in range(given["prompt"])] for _ in range(given["requests"])]
    settings = transformers.GenerationConfig(
        max_new_tokens=given["new"],
        do_sample=True,
        temperature=0.8,
        top_k=40,
        top_p=0.9,
        pad_token_id=0,
        eos_token_id=-1,
    )
    with torch.inference_mode():
        model.generate_batch(inputs=prompts[:1], generation_config=settings, progress_bar=False)
        began = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
        seconds = time.perf_counter() - began
    made = sum(len(answer.generated_tokens) for answer in answers.values())
    if made != len(prompts) * given["new"]:
        raise SystemExit(f"{made} tokens came, not {len(prompts) * given['new']}")
    print(json.dumps({"rate": made / seconds, "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
