"""Tests and benchmarks on a machine with a GPU and no network: `make gpu-check`, or `gpu_check.py [FOLDER]`.

Runs its parts one after the other with the python that runs this, each for so long at most, eight minutes in all, and
keeps each one's output in FOLDER. What fails or hangs does not stop what follows: a part of tests goes on, in another
process, behind the test that made the device unusable. `tests/gpu/README.md` says what the machine must have.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 470.0
TRIES = 6
"""Processes that the tests of a part may take."""
PYTEST = ["-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", ".", "-q", "--durations=5"]
BENCH = ["bench/gpu.py", "--no-peer", "--profile", "--rounds"]


@dataclass(frozen=True)
class Part:
    """What is run, and for how long at most."""

    name: str
    seconds: float
    arguments: list[str]
    is_tests: bool = False


PARTS = (
    Part("kernels", 90, [*PYTEST, "tests/gpu/test_kernels_cuda.py"], True),
    Part("engine", 130, [*PYTEST, "tests/gpu/test_native_cuda.py"], True),
    Part("small", 90, [*BENCH, "2", "--shapes", "0.6B", "--seconds", "55"]),
    Part("large", 120, [*BENCH, "1", "--shapes", "8B", "--seconds", "75"]),
    Part(
        "timeline", 40, ["bench/timeline.py", "--device", "GPU", "--rounds", "2", "--picture", "{folder}/timeline.svg"]
    ),
    Part("peer", 100, ["bench/gpu.py", "--shapes", "0.6B", "--requests", "64", "--rounds", "1", "--seconds", "80"]),
)
"""The most telling first: what comes last gets what time is left."""


def run(part: Part, folder: Path, seconds: float) -> str:
    """A part's outcome in a few words."""
    path = os.pathsep.join(filter(None, ("api", "server", os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    done = folder / f"{part.name}.done"
    environment["TANDEM_GPU_DONE"] = str(done.resolve())
    arguments = [argument.format(folder=folder.resolve()) for argument in part.arguments]
    began, tries = time.monotonic(), 0
    with (folder / f"{part.name}.txt").open("w") as out:
        while True:
            left, tries = seconds - (time.monotonic() - began), tries + 1
            command = [sys.executable, *arguments]
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=left, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                outcome = f"did not end within {seconds:.0f} s"
                break
            whole = not part.is_tests or (done.is_file() and done.read_text().endswith("END\n"))
            outcome = f"{'passed' if code == 0 and tries == 1 else f'FAILED ({code})'}"
            if whole or tries == TRIES:
                break
    done.unlink(missing_ok=True)
    return f"{outcome} in {time.monotonic() - began:.0f} s, {tries} processes"


def main() -> int:
    """Exit status: 0 when every part passed."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OUT") or ROOT / "gpu-check")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SECONDS
    outcomes = {}
    for part in PARTS:
        left = min(part.seconds, end - time.monotonic())
        outcomes[part.name] = run(part, folder, left) if left > 10 else "left out, the time is up"
        print(f"== {part.name}: {outcomes[part.name]}", flush=True)
        print("\n".join((folder / f"{part.name}.txt").read_text(errors="replace").splitlines()[-25:]), flush=True)
        (folder / "summary.txt").write_text("".join(f"{name}: {outcome}\n" for name, outcome in outcomes.items()))
    return 0 if all("passed" in outcome for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
