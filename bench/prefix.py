"""The second turn of a long chat against its first, with the prefix cache and without: `make bench-prefix`.

`python bench/prefix.py [--model FOLDER] [--device GPU] [--rounds 3] [--prompt 4096]`. Without a model it makes a random
one. A round asks a fresh first turn of so many tokens, lets it answer, and then asks a second turn: prompt, answer and
a short question more. What is measured is the time from sending a turn to its first token. One resident model serves
both ways in turns, round by round. Prints each round, and as its last line one JSON object.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from overlap import cpu_name

# isort: split
import torch

from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.wire import Add, FromRunner, RunnerSpec, Sampling, Stop, Tokens, ToRunner

ANSWER, QUESTION = 64, 24
TARGET = 8.0
SHAPES = {"CPU": (512, 1408, 8, 8192), "GPU": (1024, 3072, 28, 65536)}


def random_model(folder: Path, device: str) -> Path:
    """A Llama checkpoint of random bf16 weights with heads of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, wide, layers, vocabulary = SHAPES[device]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


class Chat:
    """A front end that asks both turns of one chat and notes when their first tokens come."""

    def __init__(self, prompt: list[int], question: list[int]) -> None:
        self._question = question
        self._sequence = list(prompt)
        self._inbox: deque[ToRunner] = deque([self._turn(1, ANSWER)])
        self._asked = 0.0
        self.seconds: list[float] = []
        """From asking to the first token, of each turn."""
        self.cached: list[int] = []
        """Tokens of each turn's prompt that were not computed."""

    def _turn(self, number: int, most: int) -> Add:
        return Add(number, list(self._sequence), most, Sampling(temperature=0.8, top_k=40, seed=number))

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """The turn that is due, if any; `Stop` when both were answered."""
        due = list(self._inbox)
        self._inbox.clear()
        if due:
            self._asked = time.perf_counter()
        return due or ([Stop()] if timeout is None else [])

    def send(self, message: FromRunner) -> None:
        """Notes first tokens; the end of the first turn sends the second."""
        for row in message.rows if isinstance(message, Tokens) else ():
            if len(self.seconds) < row.request:
                self.seconds.append(time.perf_counter() - self._asked)
                self.cached.append(row.cached)
            self._sequence += row.tokens
            if row.finish and row.request == 1:
                self._sequence += self._question
                self._inbox.append(self._turn(2, 1))


@dataclass(frozen=True)
class Round:
    """Seconds to the first token, of both turns, with the cache and without."""

    cached: list[float]
    uncached: list[float]


def ask(engine: NativeEngine, seed: int, length: int, vocabulary: int) -> Chat:
    """One chat from beginning to end."""
    rng = random.Random(seed)
    prompt, question = ([rng.randrange(1, vocabulary) for _ in range(count)] for count in (length, QUESTION))
    chat = Chat(prompt, question)
    engine.serve(chat)
    return chat


def measure(model: Path, options: argparse.Namespace) -> list[Round]:
    """All rounds but the first, which warms up."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    spec = RunnerSpec(
        "bench",
        str(model),
        "",
        device=options.device,
        slots=2,
        context=options.prompt + 512,
        threads=options.threads,
    )
    engine = load_generator(spec, lambda *_: None)
    told = engine.loaded
    print(f"{told.device}, {told.parameters / 1e6:.1f} M parameters in {told.dtype}; {told.engine_reason}")
    rounds = []
    for number in range(options.rounds + 1):
        chats = {}
        for kept in (True, False) if number % 2 else (False, True):
            engine.reuse = kept
            chats[kept] = ask(engine, number, options.prompt, vocabulary)
        if number:
            rounds.append(Round(chats[True].seconds, chats[False].seconds))
            print(
                f"round {number}: first token of turn 1 and 2 after {_times(chats[True])} with the cache "
                f"({chats[True].cached[1]} tokens found), {_times(chats[False])} without",
                flush=True,
            )
    return rounds


def _times(chat: Chat) -> str:
    return " and ".join(f"{1000 * seconds:.0f} ms" for seconds in chat.seconds)


def aims(rounds: list[Round], length: int, device: str) -> list[dict[str, object]]:
    """The results in the form that `tools/record.py` keeps."""

    def aim(name: str, values: list[float], target: float | None) -> dict[str, object]:
        value = statistics.median(values)
        return {
            "aim": f"{name}, {length} tokens, {device}",
            "value": round(value, 2),
            "spread": [round(min(values), 2), round(max(values), 2)],
            "target": "-" if target is None else f">= {target}",
            "ok": None if target is None else value >= target,
        }

    return [
        aim("first token of the first turn / of the second", [one.cached[0] / one.cached[1] for one in rounds], TARGET),
        aim("the same without the cache", [one.uncached[0] / one.uncached[1] for one in rounds], None),
        aim("second turn: without the cache / with it", [one.uncached[1] / one.cached[1] for one in rounds], None),
        aim("first turn: without the cache / with it", [one.uncached[0] / one.cached[0] for one in rounds], 0.95),
    ]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint's folder; default: a random one")
    parser.add_argument("--device", choices=["CPU", "GPU"], default="GPU" if torch.cuda.is_available() else "CPU")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--threads", type=int, help="CPU threads; default: what the container has")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure(options.model or random_model(Path(folder), options.device), options)
    machine = cpu_name() if options.device == "CPU" else torch.cuda.get_device_name(0)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    result = {"name": "prefix", "machine": machine, "versions": versions}
    print(json.dumps({**result, "aims": aims(rounds, options.prompt, options.device)}))


if __name__ == "__main__":
    main()
