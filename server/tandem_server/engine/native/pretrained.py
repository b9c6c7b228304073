"""The one way in which a model of the transformers library is read: weights from safetensors, never code.

Called by the loads of the long tail (`library.py`) and of encoders (`encoder.py`), which say what must be there.
"""

from pathlib import Path
from typing import Any

import torch

from tandem_server.engine.interface import LoadError


def from_folder(model_class: Any, folder: Path, dtype: torch.dtype, what: str, **more: Any) -> tuple[Any, Any]:
    """The model, and what the library says of missing, mismatched and unexpected tensors.

    Args:
        model_class: of the library, with `from_pretrained`.
        folder: the checkpoint's.
        dtype: to hold the weights in.
        what: the model, as an error names it.
        more: for `from_pretrained`.

    Raises LoadError.
    """
    from transformers import logging as library_logging  # imported late: it takes seconds

    library_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are told; the caller refuses them
            output_loading_info=True,
            **more,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"the transformers library cannot load {what}: {error}") from None
    return model, info
