"""Loads a checkpoint in a process of its own, fills its contexts, runs its largest steps, and prints the peak as JSON.

`python peak_of_load.py FOLDER SETTINGS`: SETTINGS are fields of RunnerSpec as JSON. The peak is of memory that cannot
be given back: anonymous pages, and the libraries' files, but not the checkpoint's, which is the page cache's.
"""

import json
import sys
import threading
from pathlib import Path

import tandem_server.engine.runner  # noqa: F401 - what a runner is started with
from tandem_server.engine.native.encoder import EmbeddingEngine, load_encoder
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.sentence import BATCH_TOKENS
from tandem_server.engine.native.warmup import warm_up_plans
from tandem_server.engine.wire import RunnerSpec

SAMPLE_SECONDS = 0.002


def pages(kind: str) -> int:
    """Bytes of this process in RAM: RssAnon, or RssFile."""
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{kind}:"))


class Watch(threading.Thread):
    """Looks at the anonymous pages until it is told to end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.peak, self.reading = threading.Event(), 0, 0

    def note(self, phase: str, *_: int) -> None:
        """Remembers the peak up to when the weights have been read."""
        if phase == "reading weights":
            self.reading = self.peak

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, pages("RssAnon"))


def main(folder: str, settings: str) -> None:
    spec = RunnerSpec("m", folder, "", **json.loads(settings))
    watch = Watch()
    watch.start()
    if spec.task == "Embed":
        engine = load_encoder(spec, watch.note)
        exercise_encoder(engine)
    else:
        engine = load_generator(spec, watch.note)
        pool = engine._step._decoder.cache.pool
        pool.view(-1)[:: 4096 // pool.element_size()] = 0  # every page is really there
        for plan in warm_up_plans(engine._limits, worst=True):
            assert not engine._step.compute(plan).to_host().failures
    watch.ended.set()
    watch.join()
    loaded = engine.loaded
    print(
        json.dumps(
            {
                "peak": watch.peak + pages("RssFile"),
                "reading": watch.reading + pages("RssFile"),
                "total": loaded.total_bytes,
                "parts": [loaded.weight_bytes, loaded.cache_bytes, loaded.overhead_bytes],
                "context": loaded.context,
            }
        )
    )


def exercise_encoder(engine: EmbeddingEngine) -> None:
    """The largest batches: of texts as long as they may be, and of short ones."""
    longest = engine.loaded.context
    for length in (longest, 64):
        engine.embed([[5] * length] * max(1, BATCH_TOKENS // length))


if __name__ == "__main__":
    main(*sys.argv[1:])
