"""NVIDIA's driver without torch, whose import takes seconds: list the GPUs, and begin a CUDA context early.

Uses its C interface, https://docs.nvidia.com/cuda/cuda-driver-api. cuInit makes no context and takes no GPU memory.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import threading
from functools import lru_cache
from pathlib import Path

from .devices import Device

_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def gpus() -> list[Device]:
    """The GPUs that torch will find here, with torch's numbers and names; [] if torch is built without CUDA or the
    driver does not answer. Only once torch is imported is it known whether it can use them."""
    cuda = _driver()
    if cuda is None or not _torch_has_cuda():
        return []
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [Device(f"cuda:{number}", _name(cuda, number)) for number in range(count.value)]


def capability(device: str) -> tuple[int, int]:
    """The compute capability of a GPU, (0, 0) if the driver does not tell."""
    cuda, number, found = _driver(), ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(number), int(device.partition(":")[2])):
        return 0, 0
    for value, attribute in zip(found, (_MAJOR, _MINOR), strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
    return found[0].value, found[1].value


def begin_context(device: str) -> None:
    """Start a thread that makes the CUDA context for torch (half a second) while torch is imported.

    Errors are ignored: torch meets and reports them too.
    """
    threading.Thread(target=_hold_context, args=(device,), name="rankscope-context", daemon=True).start()


def _hold_context(device: str) -> None:
    cuda, number, context = _driver(), ctypes.c_int(), ctypes.c_void_p()
    if cuda is not None and not cuda.cuDeviceGet(ctypes.byref(number), int(device.partition(":")[2])):
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)


@lru_cache
def _driver() -> ctypes.CDLL | None:
    """The driver's library, initialised; None if it is missing or sees no GPU."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        return None if cuda.cuInit(0) else cuda
    except (OSError, AttributeError):
        return None


def _name(cuda: ctypes.CDLL, number: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    return name.value.decode(errors="replace")


@lru_cache
def _torch_has_cuda() -> bool:
    """Return whether the installed torch was built for CUDA, according to its version.py."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return False
    try:
        said = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b.*=\s*['\"]", said, re.MULTILINE) is not None
