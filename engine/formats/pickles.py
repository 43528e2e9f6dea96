"""Checking the pickle of a PyTorch file, by its tokens: it may only name tensors and containers. Nothing is
executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, printable

ZIP = b"PK\x03\x04"
"""The first bytes of an archive that torch.save writes; its pickle is a record of it."""
_COSTS = {"BINGET": 0, "LONG_BINGET": 0, "BINPUT": 0, "REDUCE": 256, "NEWOBJ": 256}
_NUMBERED = 16
"""The bytes that Python's table of objects takes for each number up to the largest."""
_MAX_OBJECTS = 64 * 20_000_000  # enough for 300,000 tensors; reading their tokens takes 20 s

_HARMLESS = re.compile(
    r"collections OrderedDict|_codecs encode|(__builtin__|builtins) set"
    r"|torch (\w+Storage|b?float\w+|u?int\d+|bool|complex\d+|half|double|long|short|Size|device)"
    r"|torch\.storage (Untyped|Typed)Storage|torch\.nn\.parameter Parameter|torch\._tensor _rebuild_from_type_v2"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
)


def check_pickle(file: Path, pickle: BinaryIO, size: int) -> None:
    """Refuse a pickle that names more than tensors and containers, in a file of `size` bytes. Only its tokens are read,
    from where `pickle` stands to its end.

    A token of one byte may make an object of 64, and a call one of 256. A model's pickle, with about 150 bytes a
    tensor, makes objects of less than 10 times its file.

    Raises:
        InputError: it names something else.
        ValueError: its objects would take more memory than ten times the file and 10 MB, or are too many.
    """
    from pickletools import genops  # not needed for the first screen

    left = min(10 * size + 10_000_000, _MAX_OBJECTS)
    for opcode, argument, _ in genops(pickle):
        left -= _COSTS.get(opcode.name, 64)
        if left < 0 or (opcode.name in ("PUT", "LONG_BINPUT") and _NUMBERED * int(argument or 0) > left):
            raise ValueError("its pickle holds too many objects")
        if opcode.name == "PROTO" and argument != 2:
            raise bad_file(file, f"was saved with pickle protocol {argument}: save it with torch.save's own, 2")
        if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            argument = opcode.name
        elif opcode.name != "GLOBAL" or _HARMLESS.fullmatch(str(argument)):
            continue
        needed = printable(str(argument).replace(" ", "."), 80)
        raise bad_file(
            file, f"needs {needed}, which could execute code, and was not loaded: save its state_dict() as safetensors"
        )


def bad_file(file: Path, what: str) -> InputError:
    """The error about a file: its name, then `what`."""
    return InputError(f"{printable(str(file))} {what}")


def damaged(file: Path, reason: str) -> InputError:
    """The error about a file that is incomplete, or not of the kind that its name says."""
    return bad_file(file, f"is damaged or not a checkpoint ({printable(reason, 80)}): download it again")
