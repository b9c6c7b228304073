"""Runs the test tiers that are named, in order, and prints what each took: `tiers.py lint fast unit cluster node`.

Stops at the first tier that fails. A tier that cannot run on this machine says why and fails, so that a green run
always means that everything ran; `TANDEM_SKIP_NODE=1` leaves out the node tier where there is no root.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTEST = [str(BIN / "python"), "-m", "pytest", "-q", "--durations=5"]

PREPARE = [str(BIN / "python"), "-m", "tandem_devcluster", "prepare"]

TIERS: dict[str, list[list[str]]] = {
    "lint": [
        [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
        [str(BIN / "ruff"), "check", "--quiet", "."],
        [str(BIN / "mypy")],
        [str(BIN / "lint-imports"), "--no-logo"],
    ],
    "fast": [[*PYTEST, "tests/unit", "-m", "not torch and not process"]],
    "unit": [[*PYTEST, "tests/unit", "-m", "torch or process"]],
    # What takes minutes on a machine's first run is made before the tests, whose own time is bounded.
    "cluster": [[*PREPARE, "--helm", "--fake-nodes"], [*PYTEST, "tests/cluster"]],
    "node": [[*PREPARE, "--node", "--helm"], [*PYTEST, "tests/node", "tests/e2e", "--timeout=600"]],
}


def run(tier: str) -> tuple[bool, float]:
    """Whether the tier passed, and its seconds."""
    started = time.monotonic()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    print(f"== {tier}", flush=True)
    passed = all(
        subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0 for command in TIERS[tier]
    )
    return passed, time.monotonic() - started


def main() -> int:
    """Exit status: 0 when every tier passed."""
    names = sys.argv[1:]
    unknown = [name for name in names if name not in TIERS]
    if unknown or not names:
        print(f"usage: tiers.py TIER...; a TIER is one of {', '.join(TIERS)}", file=sys.stderr)
        return 2
    if os.environ.get("TANDEM_SKIP_NODE") == "1" and "node" in names:
        print("== node: left out, as TANDEM_SKIP_NODE=1 asks")
        names.remove("node")
    lines = []
    for name in names:
        passed, seconds = run(name)
        lines.append(f"{name:8} {'passed' if passed else 'FAILED'} in {seconds:5.1f} s")
        if not passed:
            break
    print("== tiers\n" + "\n".join(lines))
    return 0 if all("passed" in line for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
