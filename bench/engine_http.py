"""Our pod against vLLM's server, both through HTTP: token rates of 1, 8 and 32 streams, and what HTTP costs us.

`make bench-http`, or `python bench/engine_http.py [--rounds 3]`. The 135M shape of `bench/engine.py` with random
weights and a random tokenizer; 32 prompt tokens, 128 new ones, sampled. A real pod (`python -m tandem_server` with a
catalog) serves it in bfloat16 and in Int4; `vllm serve` beside it in bfloat16. One client asks one of them at a time,
in changing order, round by round; with `--wire` our engine alone too, to show what the front end costs. The client runs
on the same cores: its work slows all alike. Ollama's figures of another machine stand beside ours (see
`http_figures.py`). Tells each round, and prints one JSON object.
"""

import argparse
import json
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from engine import DTYPES, NO_VLLM, SETTLE_SECONDS, VLLM_PYTHON, cases, measure, random_model, vllm_settings
from engine_arms import CONTEXT, SLOTS, Arm, ArmError, Native
from engine_record import Record, kept, tell
from engine_results import AIMED, OURS
from http_client import Target
from http_figures import INT4, VLLM, WIRE, rows
from http_servers import Served, tandem, vllm, vllm_version
from random_tokenizer import write_tokenizer

DTYPE = "bfloat16"
MODELS = {OURS: {"name": "bf16", "dtype": DTYPES[DTYPE]}, INT4: {"name": "int4", "quantization": "Int4"}}
"""Our arms, and the entries of the catalog that they ask."""


def start(folder: Path, options: argparse.Namespace, scratch: Path, ends: ExitStack) -> dict[str, Arm]:
    """All servers with the model loaded, one after the other. Raises ArmError; vLLM may fail without harm."""
    arms: dict[str, Arm] = {}
    shared = {"source": f"file://{folder}", "slots": SLOTS, "context": {"length": CONTEXT}}
    pod = tandem([{**shared, **entry} for entry in MODELS.values()], options.threads, scratch)
    ends.callback(pod.close)
    for name, entry in MODELS.items():
        arms[name] = Served(name, Target(pod.url, entry["name"]), {})
    tell(f"  our pod is ready after {pod.started_seconds:.0f} s")
    if options.wire:
        arms[WIRE] = Native(folder, DTYPES[DTYPE], options.threads, scratch)
        ends.callback(arms[WIRE].close)
    if options.vllm_python.exists():
        settings = {"dtype": DTYPE, "max-model-len": CONTEXT, "max-num-seqs": SLOTS}
        environment = vllm_settings(options.vllm_python)
        try:
            peer = vllm(options.vllm_python, folder, settings, options.threads, scratch, environment)
        except ArmError as error:
            tell(f"  vLLM is left out: {error}")
        else:
            ends.callback(peer.close)
            version = {"vllm": f"{vllm_version(options.vllm_python)} (its own OpenAI server)"}
            arms[VLLM] = Served(VLLM, Target(peer.url, "vllm"), version)
            tell(f"  vLLM's server is ready after {peer.started_seconds:.0f} s")
    return arms


def run(options: argparse.Namespace, scratch: Path, record: Record) -> None:
    """Everything. Raises ArmError or Ended."""
    model, _ = AIMED
    folder = random_model(scratch / model)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    write_tokenizer(folder, vocabulary)
    record.threads[model] = options.threads
    with ExitStack() as ends:
        arms = start(folder, options, scratch, ends)
        for arm in arms.values():
            record.versions |= arm.versions
        wanted = cases(model, DTYPE, greedy=False)
        measure(arms, wanted, vocabulary, options.rounds, record.found, SETTLE_SECONDS)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each engine; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wire", action="store_true", help="our engine once more, asked through its runner's wire")
    parser.add_argument("--vllm-python", type=Path, default=VLLM_PYTHON)
    options = parser.parse_args()
    if not options.vllm_python.exists():
        tell(NO_VLLM)
    record = Record("http", rows)
    kept(record, partial(run, options, record=record))


if __name__ == "__main__":
    main()
