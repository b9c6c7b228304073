"""What it costs to have more models than fit: `make bench-residency`.

1. Swap: a request for a model that is not loaded, with room for one: the other is unloaded, this one loaded. Set
   against the time to read the same bytes from the page cache, which is the least that any load takes.
2. Warm switch: requests that go to two loaded models in turn, against requests to one of them alone.
3. A Zipf trace over 8 models with room for 3: the share of requests that find their model loaded, against Ollama's
   rule on the same trace, both simulated (`residency_trace.py`).

One pod as in Kubernetes, with a device budget; a 135M-parameter Llama shape of random weights. The last line of output
is the result as JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from engine import random_model
from http_servers import tandem
from random_tokenizer import write_tokenizer
from residency_trace import keep_alives, ollama, ours, trace

from tandem_server.devices import cpu_report

GIB = 1 << 30
SEEDS = range(40)
SWITCHES = 60


def read_seconds(folder: Path) -> float:
    """To read the weights once more from the page cache, as one stream into one buffer."""
    buffer = bytearray(1 << 24)
    began = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - began


class Asker:
    """Asks one pod for one token at a time, on one connection."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=300)

    def seconds(self, model: str) -> float:
        """Of a whole answer of one token."""
        body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 1, "ignore_eos": True, "temperature": 0}
        began = time.perf_counter()
        self._client.post("/v1/completions", json=body).raise_for_status()
        return time.perf_counter() - began

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def entries(folder: Path) -> list[dict[str, Any]]:
    """Two models of the same weights."""
    common = {"source": f"file://{folder}", "dtype": "BFloat16", "slots": 1, "context": {"length": 512}}
    return [{"name": name, **common} for name in ("a", "b")]


def swaps(folder: Path, scratch: Path, rounds: int) -> list[dict[str, float]]:
    """Of each round: a swap's seconds, those of the same request when its model is loaded, and of the bare reading."""
    found = []
    with closing(tandem(entries(folder), os.cpu_count() or 1, scratch, {"MAX_LOADED": 1}, preload=["a"])) as pod:
        asker = Asker(pod.url)
        asker.seconds("b"), asker.seconds("a")
        for number in range(rounds):
            name = "ba"[number % 2]
            swap, warm = asker.seconds(name), asker.seconds(name)
            found.append({"swap": swap - warm, "read": read_seconds(folder)})
            print(
                f"swap to {name}: {swap - warm:.2f} s; the same bytes are read in {found[-1]['read']:.3f} s", flush=True
            )
        asker.close()
    return found


def switches(folder: Path, scratch: Path, rounds: int) -> list[float]:
    """Milliseconds that a request takes longer when the one before went to the other model; medians, one a round."""
    found = []
    pod = tandem(entries(folder), 1, scratch)
    try:
        asker = Asker(pod.url)
        for _ in range(5):
            asker.seconds("a"), asker.seconds("b")
        for _ in range(rounds):
            times: dict[str, list[float]] = {"same": [], "other": []}
            for _ in range(SWITCHES):
                # a a b b a a b b: every second request follows one to the other model.
                for name in "ab":
                    times["other"].append(asker.seconds(name))
                    times["same"].append(asker.seconds(name))
            other, same = (statistics.median(times[kind]) * 1000 for kind in ("other", "same"))
            found.append(other - same)
            print(f"after the other model {other:.2f} ms, after the same {same:.2f} ms", flush=True)
        asker.close()
    finally:
        pod.close()
    return found


def shares(kind: str) -> dict[str, list[float]]:
    """Of every seed, the share of warm requests by our rules and by Ollama's."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in SEEDS:
        arrivals, keeps = trace(seed), keep_alives(seed, kind)
        found["ours"].append(ours(arrivals, keeps))
        found["theirs"].append(ollama(arrivals, keeps))
    print(f"{kind} keep-alives: {statistics.mean(found['ours']):.3f} against {statistics.mean(found['theirs']):.3f}")
    return found


def aim(
    text: str, values: Sequence[float], target: str = "-", met: Callable[[float], bool] | None = None
) -> dict[str, Any]:
    """A row: the median with its spread."""
    value = statistics.median(values)
    spread = f"{min(values):.3g} to {max(values):.3g}"
    return {"aim": text, "value": round(value, 3), "spread": spread, "target": target, "ok": met and met(value)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = random_model(scratch / "model")
        write_tokenizer(folder, json.loads((folder / "config.json").read_text())["vocab_size"])
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        found = swaps(folder, scratch, options.rounds)
        rows.append(aim(f"seconds of a swap (unload one, load {size / 1e6:.0f} MB)", [one["swap"] for one in found]))
        rows.append(
            aim("the same / reading the same bytes from the page cache", [one["swap"] / one["read"] for one in found])
        )
        added = switches(folder, scratch, options.rounds)
        rows.append(aim("milliseconds that a switch between two loaded models adds", added, "< 1", lambda one: one < 1))
    for kind, words in (("same", "5 minutes each"), ("mixed", "drawn from 1 to 30 minutes and for ever")):
        both = shares(kind)
        ratios = [mine / theirs for mine, theirs in zip(both["ours"], both["theirs"], strict=True)]
        text = f"share of warm requests, Zipf over 8 models with room for 3, keep-alives {words}"
        rows.append(aim(text, both["ours"]))
        rows.append(aim(f"{text}: ours / Ollama's rule", ratios, ">= 1", lambda one: one >= 1))
    device = cpu_report()
    machine = f"{device.name}, {device.total_bytes / GIB:.0f} GiB, load average {os.getloadavg()[0]:.1f} at the end"
    versions = {name: version(name) for name in ("torch", "uvicorn")}
    print(json.dumps({"name": "residency", "machine": machine, "versions": versions, "aims": rows}))


if __name__ == "__main__":
    main()
