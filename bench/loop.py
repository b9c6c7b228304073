"""The order of work alone: both loops on a device that only waits, against 1/(D+H) and 1/max(D,H) steps a second.

`make bench-loop`, or `python bench/loop.py [--unit MILLISECONDS] [--steps N]`. The real scheduler and loops with the
real threads run on a stand-in whose step takes D, and a front end that costs the loop H a step: both sleep, so that
no core is needed for either. A busy machine wakes sleepers late, so D and H are the means that were measured in the
same run; whatever else a step costs counts against the loop. Prints each ratio of D to H, and as its last line one
JSON object. The same in virtual time, exactly, is a test (`tests/unit/engine/test_loop_throughput.py`).
"""

import argparse
import json
import platform
import statistics
import time
from typing import Any

from tandem_server.engine.native.executors import InlineExecutor, WorkerExecutor
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, FromRunner, Sampling, Stop, Tokens, ToRunner

RATIOS = ((1, 4), (1, 2), (1, 1), (2, 1), (4, 1))
"""D to H."""
TOLERANCE = 0.03
ROUNDS = 5


def sleep_until(moment: float) -> None:
    """Sleeps most of the way and watches the clock for the rest: a plain sleep overshoots by a tenth of a step."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(max(0.0, left - 0.0002) if left > 0.0002 else 0)


class Outcome:
    """What a step of the stand-in gives."""

    def __init__(self, plan: StepPlan) -> None:
        self._plan = plan
        self.sampling = time.perf_counter()

    def to_host(self) -> StepResult:
        """The same token for every row."""
        return StepResult({slot: 1 for slot, _ in self._plan.samples})


class Device:
    """A step takes `seconds`, whatever is in it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.taken: list[float] = []

    def compute(self, plan: StepPlan) -> Outcome:
        """Waits."""
        began = time.perf_counter()
        sleep_until(began + self._seconds)
        self.taken.append(time.perf_counter() - began)
        return Outcome(plan)


class FrontEnd:
    """Sends one request; each step's tokens cost it `seconds` on the loop's own thread."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._seconds = seconds
        self._inbox: list[ToRunner] = [Add(1, [1], steps, Sampling(temperature=0.0))]
        self.moments: list[float] = []
        self.taken: list[float] = []

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """The request, then `Stop` when the engine would sleep."""
        due, self._inbox = self._inbox, []
        return due or ([Stop()] if timeout is None else [])

    def send(self, message: FromRunner) -> None:
        """Notes when a step's tokens came, and takes its time over them."""
        if isinstance(message, Tokens):
            began = time.perf_counter()
            self.moments.append(began)
            sleep_until(began + self._seconds)
            self.taken.append(time.perf_counter() - began)


def share_of_predicted(device: float, host: float, steps: int, overlapped: bool) -> float:
    """Steps a second between the first and the last step's tokens, over what the measured D and H allow."""
    scheduler = Scheduler(Limits(slots=1, context=steps + 1, vocabulary=2))
    link, stand_in = FrontEnd(host, steps), Device(device)
    if overlapped:
        worker = WorkerExecutor(stand_in.compute)
        loop = Loop(scheduler, worker, link, StatsKeeper(link, scheduler, worker))
        worker.run_beside(loop.run_overlapped)
    else:
        inline = InlineExecutor(stand_in.compute)
        Loop(scheduler, inline, link, StatsKeeper(link, scheduler, inline)).run_plain()
    rate = (len(link.moments) - 1) / (link.moments[-1] - link.moments[0])
    d, h = statistics.fmean(stand_in.taken), statistics.fmean(link.taken)
    return rate * (max(d, h) if overlapped else d + h)


def measure(unit: float, steps: int) -> list[dict[str, Any]]:
    """One aim for each loop and ratio; a step takes `unit` seconds times D or H."""
    aims = []
    for d, h in RATIOS:
        for name, overlapped in (("plain: steps a second over 1/(D+H)", False), ("overlapped: over 1/max(D,H)", True)):
            shares = sorted(share_of_predicted(d * unit, h * unit, steps, overlapped) for _ in range(ROUNDS))
            value = statistics.median(shares)
            print(f"D:H {d}:{h}, {name}: {value:.3f}", flush=True)
            aims.append(
                {
                    "aim": f"D:H {d}:{h}, {name}",
                    "value": round(value, 3),
                    "spread": [round(shares[0], 3), round(shares[-1], 3)],
                    "target": f"1 within {TOLERANCE:.0%}",
                    "ok": abs(value - 1) <= TOLERANCE,
                }
            )
    return aims


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=10.0, help="milliseconds that 1 of a ratio stands for")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    aims = measure(arguments.unit / 1000, arguments.steps)
    machine = f"{platform.machine()}, steps of {arguments.unit:g} ms times D and H, both sleeping"
    print(
        json.dumps(
            {"name": "loop", "machine": machine, "versions": f"python {platform.python_version()}", "aims": aims}
        )
    )


if __name__ == "__main__":
    main()
