"""How much memory a model's runner would take, before there is one: from `config.json` and the sizes of its tensors.

Asked by the residency manager and by `tandem plan`. The load itself decides by the same arithmetic (`tandem_api.fit`).
"""

from dataclasses import replace
from pathlib import Path

from tandem_api.fit import Estimate, Wish
from tandem_server.engine.native.config import NotFused, architecture_of, read_decoder_config, read_json
from tandem_server.engine.native.footprints import Tensors, encoder_footprint, fused_footprint, library_footprint
from tandem_server.engine.native.sentence import embeds


def estimate(folder: Path, wish: Wish, tensors: Tensors | None = None, fixed: int | None = None) -> Estimate:
    """The memory of a runner for the checkpoint in `folder`.

    Args:
        folder: with `config.json`; also with the safetensors files where `tensors` is not given.
        wish: what the runner would be asked for.
        tensors: the checkpoint's, where its files are not at hand.
        fixed: bytes that a process takes before it loads anything, where it was measured; else what was assumed.

    Raises:
        LoadError: the model would not be loaded, whatever the memory; or too little of it is known.
    """
    raw = read_json(folder / "config.json")
    architecture = architecture_of(raw)
    if embeds(folder, wish.task, architecture):
        footprint, wish = encoder_footprint(folder, raw, architecture, wish, tensors)
    else:
        try:
            footprint = fused_footprint(read_decoder_config(folder), wish)
        except NotFused:
            footprint = library_footprint(folder, raw, architecture, wish, tensors)
    return Estimate(footprint if fixed is None else replace(footprint, fixed=fixed), wish)
