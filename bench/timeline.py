"""Draws what host and device do in each step, plain and overlapped, from the timeline that the engine itself keeps.

`make bench-timeline`, or `python bench/timeline.py [--model FOLDER] [--device GPU] [--slots 8] [--picture FILE]`. One
resident model, the same requests through both loops; the picture shows some steps from the middle, to one scale.
Prints, as its last line, one JSON object with the share of its time that the device had no step.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from overlap import Load, cpu_name, requests_of  # first of ours: it sets how OpenMP's threads wait

# isort: split
import torch

from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.timeline import device_idle_share
from tandem_server.engine.wire import FromRunner, RunnerSpec, StepRecord, Stop, ToRunner, Trace, Traced

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "timeline-{device}.svg"
WIDTH, LEFT, ROW, GAP = 1000, 110, 26, 8
COLOURS = {
    "plan": "#4c78a8",
    "launch": "#72b7b2",
    "wait": "#e8e8e8",
    "tell": "#f58518",
    "forward": "#54a24b",
    "sampling": "#b279a2",
}
NAMES = {
    "plan": "plan the step",
    "launch": "launch it",
    "wait": "wait for the device",
    "tell": "tell its tokens",
    "forward": "forward",
    "sampling": "logits and sampling",
}


class TracedLoad(Load):
    """Asks for the timeline when all requests have ended, then stops the engine."""

    steps: list[StepRecord] | None = None
    _asked = False

    def receive(self, timeout: float | None) -> list[ToRunner]:
        """See `Load`."""
        due = super().receive(timeout)
        if any(isinstance(message, Stop) for message in due) and not self._asked:
            self._asked = True
            return [Trace(0)]
        return due

    def send(self, message: FromRunner) -> None:
        """See `Load`."""
        if isinstance(message, Traced):
            self.steps = message.steps
        super().send(message)


def run(engine: NativeEngine, overlapped: bool, slots: int, requests: int, vocabulary: int) -> list[StepRecord]:
    """The steps of one run."""
    engine.overlapped = overlapped
    load = TracedLoad(requests_of(1, requests, vocabulary), slots)
    engine.serve(load)
    assert load.steps
    return load.steps


def middle(steps: Sequence[StepRecord], count: int) -> list[StepRecord]:
    """`count` steps from the middle in which sequences decode and no prompt is read, if there are so many in a row."""
    start = len(steps) // 2
    for first in [*range(start, len(steps) - count), *range(start)]:
        if all(step.decoded and not step.prompt_tokens for step in steps[first : first + count]):
            return list(steps[first : first + count])
    return list(steps[start : start + count])


def parts(step: StepRecord) -> list[tuple[int, str, float, float]]:
    """(row, kind, begin, end): row 0 is the host's, row 1 the device's."""
    began, planned, launched, asked, known, told = step.host
    forward, sampling, ended = step.device
    host = [("plan", began, planned), ("launch", planned, launched), ("wait", asked, known), ("tell", known, told)]
    device = [("forward", forward, sampling), ("sampling", sampling, ended)]
    return [(0, *part) for part in host] + [(1, *part) for part in device]


def picture(runs: dict[str, list[StepRecord]], title: str) -> str:
    """The SVG: two rows a run, all runs to one scale."""
    longest = max(steps[-1].host[-1] - steps[0].device[0] for steps in runs.values())
    scale = (WIDTH - LEFT - 10) / longest
    y, drawn = 40, []
    for name, steps in runs.items():
        zero = steps[0].device[0]
        drawn.append(text(10, y + ROW, name, "bold"))
        for row, label in enumerate(("host", "device")):
            drawn.append(text(70, y + row * (ROW + GAP) + ROW - 8, label))
        for number, step in enumerate(steps):
            for row, kind, began, ended in parts(step):
                began = max(began, zero)
                if ended <= began:
                    continue
                x, wide = LEFT + (began - zero) * scale, max(0.4, (ended - began) * scale)
                top = y + row * (ROW + GAP)
                shade = f'fill="{COLOURS[kind]}"' + (' fill-opacity="0.72"' if number % 2 else "")
                about = f"step {step.step}: {NAMES[kind]}, {(ended - began) * 1e3:.3f} ms"
                place = f'x="{x:.2f}" y="{top}" width="{wide:.2f}" height="{ROW}"'
                drawn.append(f"<rect {place} {shade}><title>{about}</title></rect>")
        y += 2 * (ROW + GAP) + 22
    tick = next(
        size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if size * 12 >= longest * 1e3
    )
    drawn += [
        f'<line x1="{x:.1f}" y1="{y - 12}" x2="{x:.1f}" y2="{y - 6}" stroke="#444"/>'
        + text(x - 6, y + 8, f"{at * tick:g}")
        for at in range(int(longest * 1e3 / tick) + 1)
        for x in [LEFT + at * tick / 1e3 * scale]
    ]
    drawn.append(text(70, y + 8, "ms"))
    x = LEFT
    for kind, name in NAMES.items():
        drawn.append(f'<rect x="{x}" y="{y + 20}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        drawn.append(text(x + 17, y + 31, name))
        x += 40 + 7 * len(name)
    frame = f'viewBox="0 0 {WIDTH} {y + 44}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>'
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="#fff"/>', text(10, 20, title), *drawn, "</svg>", ""]
    )


def text(x: float, y: float, words: str, weight: str = "normal") -> str:
    """One line of text whose baseline begins at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(words)}</text>'


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "python-coder", help="a checkpoint's folder")
    parser.add_argument("--device", choices=["CPU", "GPU"], default="GPU" if torch.cuda.is_available() else "CPU")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps in the picture")
    parser.add_argument("--picture", type=Path, help="default: docs/images/timeline-DEVICE.svg")
    options = parser.parse_args()
    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    spec = RunnerSpec("bench", str(options.model), "", device=options.device, slots=options.slots, context=1024)
    engine = load_generator(spec, lambda *_: None)
    runs: dict[str, list[StepRecord]] = {}
    shares: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        for name, overlapped in (("plain", False), ("overlap", True)):
            runs[name] = run(engine, overlapped, options.slots, 3 * options.slots, vocabulary)
            if number:  # the first round warms up
                shares.setdefault(name, []).append(device_idle_share(runs[name]))
        print({name: f"device idle {device_idle_share(steps):.1%}" for name, steps in runs.items()}, flush=True)
    machine = cpu_name() if options.device == "CPU" else torch.cuda.get_device_name(0)
    file = options.picture or Path(str(PICTURE).format(device=options.device.lower()))
    file.parent.mkdir(parents=True, exist_ok=True)
    title = f"{options.model.name}, {options.slots} sequences at once, {engine.loaded.dtype}, {machine}"
    file.write_text(picture({name: middle(steps, options.steps) for name, steps in runs.items()}, title))
    aims = [
        {
            "aim": f"{name} loop: share of its time in which the device has no step, {options.slots} sequences",
            "value": round(statistics.median(found), 4),
            "spread": [round(min(found), 4), round(max(found), 4)],
            "target": "< 0.03" if name == "overlap" else "report",
            "ok": statistics.median(found) < 0.03 if name == "overlap" else None,
        }
        for name, found in shares.items()
    ]
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"name": "timeline", "machine": machine, "versions": versions, "aims": aims}))


if __name__ == "__main__":
    main()
