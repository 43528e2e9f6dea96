"""Converting a GGUF file to a checkpoint of transformers, with its names, config.json and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.open import Checkpoint
from ..errors import InputError, printable
from ..weights import TORCH_NAMES
from .running import load


def convert(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Save a GGUF file to a folder as transformers loads it, with numbers in a type of weights.WRITTEN. Meanwhile the
    whole model is in memory.

    Raises:
        InputError: transformers cannot load it, or not all of it, or cannot save it.
        OSError: the disk is full or fails.
    """
    loaded: tuple[Any, Any] = load(checkpoint, "cpu", TORCH_NAMES[dtype])
    model, tokenizer = loaded
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)  # the model is dequantised, and saved so
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises whatever its parts do; the first line is shown
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"transformers cannot save {printable(checkpoint.name)}: {printable(reason, 200)}: name the model that the "
            "GGUF file was made of"
        ) from None
