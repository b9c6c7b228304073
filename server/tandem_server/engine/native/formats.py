"""Which number format a model is computed in, by rule: what needs no measurement, and so no torch.

Asked by `dtype.py` at load and by estimates before there is a runner.
"""

from tandem_server.engine.interface import LoadError

ITEMSIZES = {"Float32": 4, "BFloat16": 2, "Float16": 2}
STORED = {"float32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}
"""As `config.json` names formats, and as a Model does."""


def stored_format(dtype: object) -> str:
    """The format that `config.json` says the checkpoint is in."""
    return STORED.get(str(dtype).removeprefix("torch."), "Float32")


def format_of(asked: str, stored: str, on_gpu: bool, quantization: str) -> tuple[str | None, str]:
    """The format and why, in half a sentence; None where it is to be measured whether BFloat16 or Float32 is faster.

    Raises LoadError for a format that is not known, or that quantised weights are not multiplied in.
    """
    if quantization != "None":
        if asked not in ("Auto", "BFloat16"):
            raise LoadError(
                f"weights quantised to {quantization} are multiplied in BFloat16; set dtype to it or to Auto"
            )
        return "BFloat16", f"BFloat16 times weights quantised to {quantization}"
    if asked != "Auto":
        if asked not in ITEMSIZES:
            raise LoadError(f"dtype {asked} is not known; Auto, {', '.join(ITEMSIZES)} are")
        return asked, f"{asked} as asked"
    if on_gpu or stored == "Float32":
        return stored, f"{stored} as the checkpoint has it"
    if stored == "Float16":
        return "Float32", "Float32, which CPUs compute faster than the checkpoint's Float16"
    return None, ""
