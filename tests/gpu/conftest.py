"""Shares the kernels' cases with the unit tests, which compute them by an interpreter; and goes on after faults.

An access beyond memory makes the device unusable for the whole process, and a kernel that does not end hangs it. Either
ends the process here. Where `TANDEM_GPU_DONE` names a file, tests that were begun before are left out, so that another
process goes on behind the one that failed; `tools/gpu_check.py` starts it.
"""

import faulthandler
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "engine"))

SECONDS = 60.0
"""Of one test."""
_done = Path(os.environ["TANDEM_GPU_DONE"]) if "TANDEM_GPU_DONE" in os.environ else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begun = set(_done.read_text().splitlines()) if _done is not None and _done.is_file() else set()
    items[:] = [item for item in items if item.nodeid not in begun]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if _done is not None:
        with _done.open("a") as begun:
            begun.write(f"{item.nodeid}\n")
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and _unusable():
        print(f"\n{report.nodeid} made the device unusable:\n{report.longreprtext}", file=sys.__stderr__, flush=True)
        pytest.exit("the device is unusable in this process", returncode=3)


def pytest_sessionfinish(exitstatus: int) -> None:
    if _done is not None and exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        with _done.open("a") as begun:
            begun.write("END\n")


def _unusable() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
