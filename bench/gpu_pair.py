"""Two busy models in two processes on one GPU against each alone, with and without MPS: `python bench/gpu_pair.py`.

For or against MPS (docs/decisions/0014-residency.md). Each process has an engine of its own, as runners have; they load
one after the other, then decode at the same time. Without MPS the device gives whole slices of time to one process
after the other; with it their kernels may run side by side. Prints each result at once and as its last line one JSON
object. With `--device CPU --shape tiny` it only shows that it runs.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from gpu_figures import SHAPES

BEGIN_SECONDS = 240.0
"""For both engines to be loaded."""
CONTROL = "nvidia-cuda-mps-control"


def work(folder: str, options: argparse.Namespace, barriers: list[Barrier], rates: Any, number: int) -> None:
    """One process: loads, then decodes once alone per process and once together with the other, at each barrier."""
    from gpu import load_engine, prompts_of, run

    shape = SHAPES[options.shape]
    engine, _ = load_engine(Path(folder), [options.requests], options.prompt + options.new, options.device)
    run(engine, True, prompts_of(0, options.requests, shape.vocabulary, 16), 4)
    for turn, barrier in enumerate(barriers):
        barrier.wait(BEGIN_SECONDS)
        phase = turn % 3  # the first alone, the second alone, both
        if phase in (number, 2):
            prompts = prompts_of(turn + 1, options.requests, shape.vocabulary, options.prompt)
            rates.put((turn, number, run(engine, True, prompts, options.new)[0]))
        barrier.wait(BEGIN_SECONDS)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Of each round, the rate together over the rate alone: of the slower process, and of both together."""
    context = multiprocessing.get_context("spawn")
    turns = 3 * options.rounds
    barriers, rates = [context.Barrier(2) for _ in range(turns)], context.Queue()
    workers = [
        context.Process(target=work, args=(str(folder), options, barriers, rates, number), daemon=True)
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
        time.sleep(options.apart)
    found = {
        (turn, number): rate
        for turn, number, rate in (rates.get(timeout=BEGIN_SECONDS) for _ in range(2 * turns - 2 * options.rounds))
    }
    for worker in workers:
        worker.join(30)
    shares: dict[str, list[float]] = {"least": [], "both": []}
    for first in range(0, turns, 3):
        alone = [found[first, 0], found[first + 1, 1]]
        together = [found[first + 2, 0], found[first + 2, 1]]
        ratios = [shared / single for shared, single in zip(together, alone, strict=True)]
        shares["least"].append(min(ratios))
        shares["both"].append(sum(ratios))
        print(
            f"alone {alone[0]:.0f} and {alone[1]:.0f} tok/s, together {together[0]:.0f} and {together[1]:.0f}",
            flush=True,
        )
    return shares


@contextmanager
def mps(folder: Path) -> Iterator[None]:
    """NVIDIA's MPS daemon with folders of its own, for processes that are started meanwhile."""
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "log")}
    for path in own.values():
        Path(path).mkdir()
    os.environ.update(own)
    subprocess.run([CONTROL, "-d"], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run([CONTROL], input=b"quit\n", check=False, timeout=30)
        for name in own:
            del os.environ[name]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.6B")
    parser.add_argument("--device", choices=["CPU", "GPU"], default="GPU")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--apart", type=float, default=5.0, help="seconds between the two loads")
    options = parser.parse_args()
    import torch
    from gpu import aim, random_checkpoint

    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        (scratch / "model").mkdir()
        device = torch.device("cuda" if options.device == "GPU" else "cpu")
        folder = random_checkpoint(SHAPES[options.shape], scratch / "model", device)
        ways = {"": measure(folder, options)}
        if options.device == "GPU" and shutil.which(CONTROL):
            with mps(scratch):
                ways[", by MPS"] = measure(folder, options)
        for how, shares in ways.items():
            title = f"two processes of {options.shape} with {options.requests} requests each{how}"
            rows.append(aim(f"{title}: both rates together over one alone", shares["both"], "report"))
            rows.append(aim(f"{title}: the slower one over itself alone", shares["least"], "report"))
            print(f"{title}: {statistics.median(shares['both']):.2f}", flush=True)
        machine = torch.cuda.get_device_name() if options.device == "GPU" else "CPU"
    print(json.dumps({"name": "gpu-pair", "machine": machine, "versions": {"torch": torch.__version__}, "aims": rows}))


if __name__ == "__main__":
    main()
