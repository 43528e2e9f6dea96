"""The files beside a model's weights that are copied with them: config.json, tokenizer, licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..checkpoint.hub import CONFIG
from ..checkpoint.open import Checkpoint
from ..formats.guarded import check_inside, read_json
from ..formats.tensor import FileStamp

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_QUANTISATION = ("quantization_config", "compression_config")
_BESIDE = re.compile(
    r"(config|generation_config|(image_|pre|video_pre)?processor_config|feature_extractor_config|configuration"
    r"|tokenizer.*|vocab.*|special_tokens_map|added_tokens|chat_template.*|sentence_bert_config|modules)\.json"
    r"|merges\.txt|vocab\.txt|chat_template.*\.jinja|.*\.tiktoken|tokenizer.*\.model.*|spiece\.model|.*\.spm"
    r"|(configuration|modeling|tokenization|processing|image_processing)_\w+\.py|(LICEN[CS]E|NOTICE).*"
)
_MOST_BYTES = 256 << 20
"""The largest such file that is copied: the largest vocabularies take 40 MB."""


def config_type(checkpoint: Checkpoint) -> str | None:
    """The type of a model's weights by its config.json; None if that names none, or one that is not written."""
    found = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    return next((name for name, word in _TYPES.items() if word == found), None)


def side_files(checkpoint: Checkpoint) -> list[Path]:
    """The files beside the weights that are copied, sorted; [] for a model that is not on this machine.

    Raises:
        InputError: one of them is a link that leaves its folder.
    """
    folders = {file.parent for file, stamp in checkpoint.stamps.items() if isinstance(stamp, FileStamp)}
    if checkpoint.location is not None and checkpoint.location.is_dir():
        folders = {checkpoint.location}
    if len(folders) != 1:
        return []
    found = [path for path in sorted(folders.pop().iterdir()) if _BESIDE.fullmatch(path.name) and path.is_file()]
    for path in found:
        check_inside(path)
    return [path for path in found if path.stat().st_size <= _MOST_BYTES]


def config_bytes(path: Path, dtype: str | None, is_plain: bool) -> bytes:
    """The config.json to write: with the type of numbers that `dtype` names, if any, and, if `is_plain`, without the
    settings of quantisation, as the weights are no longer quantised.

    Raises:
        InputError: it is no JSON object.
    """
    if dtype is None and not is_plain:
        return path.read_bytes()
    found = _changed(read_json(path), dtype, is_plain)
    if dtype is not None and not {"dtype", "torch_dtype"} & found.keys():
        found["torch_dtype"] = _TYPES[dtype]
    return json.dumps(found, indent=2, ensure_ascii=False).encode() + b"\n"


def has_config(checkpoint: Checkpoint) -> bool:
    """Return whether there is a config.json to copy."""
    return any(map(is_config, side_files(checkpoint)))


def is_config(path: Path) -> bool:
    """Return whether a file is config.json."""
    return path.name == CONFIG


def _changed(found: dict[str, Any], dtype: str | None, is_plain: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in found.items():
        if is_plain and name in _QUANTISATION:
            continue
        if dtype is not None and name in ("dtype", "torch_dtype") and isinstance(value, str):
            value = _TYPES[dtype]
        made[name] = _changed(value, dtype, is_plain) if isinstance(value, dict) else value
    return made
