"""Tests and benchmarks on a machine with a GPU and no network: `make gpu-check`, or `gpu_check.py [FOLDER]`.

Runs them one after the other with the python that runs this, within `SECONDS` in all, and keeps each one's output in
FOLDER. What fails does not stop what follows. `tests/gpu/README.md` says what the machine must have.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 570.0
PYTEST = ["-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", ".", "-q"]
PARTS = {
    "tests": [*PYTEST, "tests/gpu", "--durations=5"],
    "overlap": ["bench/overlap.py", "--device", "GPU", "--rounds", "3"],
    "timeline": ["bench/timeline.py", "--device", "GPU", "--rounds", "3"],
    "gpu": ["bench/gpu.py"],
}
"""The most important first: what comes last gets what time is left."""


def run(name: str, arguments: list[str], folder: Path, seconds: float) -> str:
    """One part's outcome in a few words."""
    environment = {**os.environ, "PYTHONPATH": "api:server", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with (folder / f"{name}.txt").open("w") as out:
        try:
            code = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"did not end within {seconds:.0f} s"
    return f"{'passed' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - began:.0f} s"


def main() -> int:
    """Exit status: 0 when every part passed."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OUT") or ROOT / "gpu-check")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + SECONDS
    outcomes = {}
    for name, arguments in PARTS.items():
        outcomes[name] = run(name, arguments, folder, max(1.0, end - time.monotonic()))
        print(f"== {name}: {outcomes[name]}", flush=True)
        print("\n".join((folder / f"{name}.txt").read_text(errors="replace").splitlines()[-12:]), flush=True)
    return 0 if all("passed" in outcome for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
