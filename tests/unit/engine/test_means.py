"""The means of inputs in files of second moments, which biases need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from calibration_files import write_moments
from numpy.typing import NDArray
from weighted_examples import projection

from rankscope.engine.calibration.file_weighting import FileWeighting, open_weighting
from rankscope.engine.errors import UnseenError, WeightsError

NAME, COLS = "blk.0.attn_k.weight", 6
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((COLS, 40)) + 2.0
KEY = projection(4, COLS, block="attention", role="key", address="layers.0.attention.key", tensor=NAME)


def imatrix(file: Path, **more: NDArray[Any]) -> FileWeighting:
    """An imatrix of llama.cpp with further entries for the key's input."""
    writer = gguf.GGUFWriter(str(file), "", endianess=gguf.GGUFEndian.LITTLE)
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    held = {"in_sum2": (INPUTS**2).sum(1)[None], "counts": np.array([[40.0]])} | more
    for word, numbers in held.items():
        writer.add_tensor(f"{NAME}.{word}", numbers.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_weighting(str(file), "m", {"model_type": "llama"})


def test_the_mean_of_an_imatrix_is_that_of_its_sums(tmp_path: Path) -> None:
    found = imatrix(tmp_path / "a.gguf", in_sum=INPUTS.sum(1)[None])
    assert found.mean(KEY) == pytest.approx(INPUTS.mean(1), rel=1e-6)
    with pytest.raises(WeightsError, match=r"no mean: the file has no sums of x, only of x\^2"):
        imatrix(tmp_path / "b.gguf").mean(KEY)
    with pytest.raises(WeightsError, match="no mean"):
        imatrix(tmp_path / "c.gguf", in_sum=np.ones((1, 3))).mean(KEY)
    with pytest.raises(UnseenError):
        imatrix(tmp_path / "d.gguf", in_sum=INPUTS.sum(1)[None], counts=np.zeros((1, 1))).mean(KEY)
    with pytest.raises(WeightsError, match="not finite"):
        imatrix(tmp_path / "e.gguf", in_sum=np.full((1, COLS), np.nan)).mean(KEY)


def test_the_mean_of_a_file_of_moments(tmp_path: Path) -> None:
    sums = {f"{NAME}.xx": INPUTS @ INPUTS.T, f"{NAME}.count": np.array([40.0])}

    def opened(**more: NDArray[Any]) -> FileWeighting:
        file = write_moments(tmp_path / f"m{len(list(tmp_path.iterdir()))}.safetensors", sums | more)
        return open_weighting(str(file), "m", {"model_type": "llama"})

    assert opened(**{f"{NAME}.x": INPUTS.sum(1)}).mean(KEY) == pytest.approx(INPUTS.mean(1), rel=1e-12)
    for wrong, said in (
        (None, "no mean"),
        (np.ones(3), "no sums of x of its 6"),
        (np.full(COLS, np.inf), "not finite"),
    ):
        with pytest.raises(WeightsError, match=said):
            opened(**({} if wrong is None else {f"{NAME}.x": wrong})).mean(KEY)
