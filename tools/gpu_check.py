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
LEAST_SECONDS = 10.0
"""With less left nothing is begun."""
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
    Part("pair", 60, ["bench/gpu_pair.py", "--rounds", "2"]),
    Part("peer", 100, ["bench/gpu.py", "--shapes", "0.6B", "--requests", "64", "--rounds", "1", "--seconds", "80"]),
)
"""The most telling first: what comes last gets what time is left."""


def run(part: Part, folder: Path, seconds: float) -> str:
    """A part's outcome in a few words."""
    path = os.pathsep.join(filter(None, ("api", "server", os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    begun = folder / f"{part.name}.begun"
    begun.unlink(missing_ok=True)
    environment["TANDEM_GPU_DONE"] = str(begun.resolve())
    arguments = [argument.format(folder=folder.resolve()) for argument in part.arguments]
    began, outcome = time.monotonic(), ""
    codes: list[int] = []
    with (folder / f"{part.name}.txt").open("w") as out:
        while len(codes) < TRIES:
            try:
                done = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=seconds - (time.monotonic() - began),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                outcome = f"did not end within {seconds:.0f} s"
                break
            codes.append(done.returncode)
            if not part.is_tests or (begun.is_file() and begun.read_text().endswith("END\n")):
                break
    begun.unlink(missing_ok=True)
    outcome = outcome or ("passed" if codes == [0] else f"FAILED {codes}")
    return f"{outcome} in {time.monotonic() - began:.0f} s"


def main() -> int:
    """Exit status: 0 when every part passed."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OUT") or ROOT / "gpu-check")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SECONDS
    outcomes = {}
    for part in PARTS:
        left = min(part.seconds, end - time.monotonic())
        output = folder / f"{part.name}.txt"
        output.write_text("")
        outcomes[part.name] = run(part, folder, left) if left > LEAST_SECONDS else "left out, the time is up"
        print(f"== {part.name}: {outcomes[part.name]}", flush=True)
        print("\n".join(output.read_text(errors="replace").splitlines()[-25:]), flush=True)
        (folder / "summary.txt").write_text("".join(f"{name}: {outcome}\n" for name, outcome in outcomes.items()))
    return 0 if all("passed" in outcome for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
