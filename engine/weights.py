"""A matrix of weights: a numpy array on the CPU, a torch tensor on a GPU.

Work on the CPU avoids torch, whose import takes 1.2 to 2.2 s: as long as solving 16 matrices of 1024 columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Strings, so that opening a model imports neither.
HostArray: TypeAlias = "NDArray[Any]"
Weights: TypeAlias = "HostArray | torch.Tensor"


@runtime_checkable
class Packed(Protocol):
    """A stored tensor whose packed numbers are unpacked to floats on demand, on the device where they lie. Its shape is
    (out, in), or (matrices, out, in)."""

    shape: tuple[int, ...]

    def __getitem__(self, index: int) -> Weights:
        """One matrix of a stack, shape (out, in)."""
        ...

    def reshape(self, *shape: int) -> Weights:
        """The whole tensor as one matrix."""
        ...

    def on_host(self) -> Packed:
        """The same tensor in the CPU's memory."""
        ...


TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""The stored types that are plain numbers, with torch's names; why_no_weights explains every other type."""

_REASONS = {
    "BOOL": "BOOL holds true and false, as masks do, not weights",
    **dict.fromkeys(("C64", "COMPLEX128", "COMPLEX32"), "{} holds complex numbers, which are not computed"),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), "{} holds floats of 6 bits, which are not read: unsupported quantisation"),
    **dict.fromkeys(("I16", "U16", "I64", "U64"), "{} holds whole numbers, not weights"),
}
_PACKABLE = frozenset(("I8", "U8", "I32", "U32"))
WHOLE = _PACKABLE | {"I16", "U16", "I64", "U64", "BOOL"}
"""The stored types whose numbers are no weights unless several of them are packed into one."""


def why_no_weights(dtype: str, packed: bool = True) -> str:
    """The sentence about a stored type that is not in TORCH_NAMES. `packed`: whether bytes and 32-bit words
    may hold weights."""
    if dtype in _PACKABLE and not packed:
        return f"{dtype} holds whole numbers, not weights"
    return _REASONS.get(dtype, "{} holds packed integers, not weights: unsupported quantisation").format(dtype)


WIDENED = frozenset(TORCH_NAMES) - {"F64", "F32", "F16"}
"""The types that numpy does not know: on the CPU they become float32, which holds all their values exactly."""


def plain(data: Weights, dtype: str) -> Weights:
    """Stored bytes (uint8) as flat numbers of a type of TORCH_NAMES, on the device where they lie."""
    import numpy as np

    if not isinstance(data, np.ndarray):
        return data.view(_torch_type(dtype))
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in WIDENED:
        import torch

        return torch.from_numpy(data).view(_torch_type(dtype)).float().numpy()
    return data.view(TORCH_NAMES[dtype])


WRITTEN = ("F64", "F32", "F16", "BF16")
"""The types in which matrices are written."""


def encoded(numbers: HostArray, dtype: str) -> HostArray:
    """Round numbers to a type of WRITTEN, as little-endian bytes (uint8, flat) that `plain` reads.

    Raises:
        OverflowError: the type cannot hold them.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        kept = numbers.astype("<f4" if dtype == "BF16" else {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
        if dtype == "BF16":
            bits = kept.view("<u4")
            kept = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")
    data: HostArray = np.ascontiguousarray(kept).reshape(-1).view(np.uint8)
    if not np.isfinite(plain(data, dtype)).all():
        raise OverflowError(f"{dtype} does not hold numbers of {float(np.abs(numbers).max()):.3g}")
    return data


def host_array(weights: Weights) -> HostArray:
    """The weights on the CPU, as float16, float32 or float64."""
    import numpy as np

    if isinstance(weights, np.ndarray):
        return weights
    held = weights.cpu()
    exact = str(held.dtype) in ("torch.float16", "torch.float32", "torch.float64")
    array: np.ndarray[Any, Any] = (held if exact else held.float()).numpy()
    return array


def settled(weights: Weights) -> Weights:
    """Wait until a GPU has made the weights, and return them: the solver uses another stream than the reader."""
    import numpy as np

    if not isinstance(weights, np.ndarray) and weights.is_cuda:
        import torch

        torch.cuda.current_stream(weights.device).synchronize()
    return weights


def _torch_type(dtype: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    return found
