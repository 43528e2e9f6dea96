"""Files of second moments: what their sums become, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_files import write_moments
from numpy.typing import NDArray

from rankscope.engine.calibration import moments_read
from rankscope.engine.calibration.moment_reader import StackedMatrix
from rankscope.engine.calibration.moments_read import Moments, read_moments
from rankscope.engine.errors import UnseenError, WeightsError
from rankscope.engine.moment import Moment

RNG = np.random.default_rng(15)
TOKENS, HELD_OUT = RNG.standard_normal((50, 300)) * 10.0 ** RNG.uniform(-2, 2, 300), RNG.standard_normal((20, 300))
NAME, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"


def sums_of(name: str, x: NDArray[np.float64], part: str = "", dtype: Any = np.float64) -> dict[str, Any]:
    stem = f"{name}.{part}" if part else name
    return {
        f"{stem}.xx": (x.T @ x).astype(dtype),
        f"{stem}.x": x.sum(0).astype(dtype),
        f"{stem}.count": np.array(len(x), np.float64),
    }


def opened(folder: Path, sums: dict[str, Any], **metadata: str) -> Moments:
    found = read_moments(write_moments(folder / "m.safetensors", sums, **metadata))
    assert found is not None
    return found


def loaded(moment: Moment) -> NDArray[np.float64]:
    (operand,) = moment.operands
    assert operand.load is not None
    values = operand.load()
    assert values.dtype == np.float64
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_are_sums_over_their_own_tokens(tmp_path: Path, dtype: type) -> None:
    first = TOKENS[:4]
    sums = sums_of(NAME, TOKENS, dtype=dtype) | sums_of(NAME, first, "first", dtype) | sums_of(NAME, HELD_OUT, "held")
    found = opened(tmp_path, sums)
    assert found.names == (NAME,)
    rtol = 1e-5 if dtype == np.float32 else 1e-14
    for part, x in (("", TOKENS), ("first", first), ("held", HELD_OUT)):
        moment = found.moment(NAME, 300, None, None, part)  # type: ignore[arg-type]
        expected = np.einsum("ti,tj->ij", x, x) / len(x)
        assert (moment.form, moment.cols) == ("full", 300)
        values = loaded(moment)
        np.testing.assert_allclose(values, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
        assert (values == values.T).all()


def test_the_diagonal_alone(tmp_path: Path) -> None:
    found = opened(tmp_path, {f"{NAME}.x2": (TOKENS**2).sum(0), f"{NAME}.count": np.array([50])})
    moment = found.moment(NAME, 300, None, None)
    assert (moment.form, moment.cols) == ("diagonal", 300)
    np.testing.assert_allclose(loaded(moment), (TOKENS**2).mean(0), rtol=1e-14)


@pytest.mark.parametrize("key", ["inputs", "shared"])
def test_a_shared_input_stands_once(tmp_path: Path, key: str) -> None:
    others = [NAME.replace("q_proj", f"{letter}_proj") for letter in "kv"]
    found = opened(tmp_path, sums_of(NAME, TOKENS), **{key: json.dumps(dict.fromkeys(others, NAME))})
    assert set(found.names) == {NAME, *others}
    digests = [found.moment(name, 300, None, None).digest for name in found.names]
    assert len(set(digests)) == 1
    np.testing.assert_allclose(
        loaded(found.moment(others[1], 300, None, None)), TOKENS.T @ TOKENS / 50, rtol=1e-9, atol=1e-9
    )


def test_a_flat_map_in_the_metadata(tmp_path: Path) -> None:
    key = NAME.replace("q_proj", "k_proj")
    found = opened(tmp_path, sums_of(NAME, TOKENS), **{key: NAME, "format": "pt", "odd": "{", "list": "[1]"})
    assert set(found.names) == {NAME, key}


def test_what_it_says_of_its_run(tmp_path: Path) -> None:
    sums = sums_of(NAME, TOKENS) | sums_of(DOWN, TOKENS[:3]) | sums_of(NAME, np.vstack([TOKENS] * 3), "held")
    assert opened(tmp_path, sums).about == "50 tokens"
    assert opened(tmp_path, sums, datasets="wiki.train").about == "wiki.train, 50 tokens"


def test_digests_are_of_the_numbers(tmp_path: Path) -> None:
    def digest(sums: dict[str, Any], name: str = NAME) -> str:
        return opened(tmp_path, sums).moment(name, 300, None, None).digest

    plain = sums_of(NAME, TOKENS)
    same = digest(plain)
    assert digest(sums_of("a" + NAME, HELD_OUT) | plain) == same
    assert digest(sums_of(DOWN, TOKENS), DOWN) == same
    assert digest({**plain, f"{NAME}.count": np.array(51.0)}) != same
    changed = plain[f"{NAME}.xx"].copy()
    changed[299, 0] = changed[0, 299] = np.nextafter(changed[0, 299], 9)
    assert digest({**plain, f"{NAME}.xx": changed}) != same


def test_a_matrix_is_read_for_its_digest_in_chunks_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    true = moments_read.read_bytes
    monkeypatch.setattr(moments_read, "CHUNK", 1 << 16)
    monkeypatch.setattr(moments_read, "read_bytes", lambda t, *rest: read.append(t.end - t.begin) or true(t, *rest))
    found = opened(tmp_path, sums_of(NAME, TOKENS), inputs=json.dumps({DOWN: NAME}))
    read.clear()
    whole = [found.moment(name, 300, None, None).digest for name in (NAME, DOWN)]
    assert whole[0] == whole[1]
    assert sum(size for size in read if size > 8) == 8 * 300 * 300
    assert max(read) == 1 << 16


def _asymmetric(xx: NDArray[np.float64]) -> NDArray[np.float64]:
    xx = xx.copy()
    xx[280, 3] += 1e-4 * np.abs(xx).max()
    return xx


def _negative(xx: NDArray[np.float64]) -> NDArray[np.float64]:
    xx = xx.copy()
    xx[7, 7] = -1e-4 * np.abs(xx).max()
    return xx


def _with(xx: NDArray[np.float64], value: float) -> NDArray[np.float64]:
    xx = xx.copy()
    xx[299, 299] = value
    return xx


XX = TOKENS.T @ TOKENS
COUNT = {f"{NAME}.count": np.array(50.0)}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not symmetric": ({f"{NAME}.xx": _asymmetric(XX), **COUNT}, "its sums of products are not symmetric"),
    "negative": ({f"{NAME}.xx": _negative(XX), **COUNT}, "a sum of squares is negative"),
    "nan": ({f"{NAME}.xx": _with(XX, np.nan), **COUNT}, "a sum of products is not finite"),
    "infinite": ({f"{NAME}.xx": _with(XX, -np.inf), **COUNT}, "a sum of products is not finite"),
    "negative square": ({f"{NAME}.x2": -np.ones(300), **COUNT}, "a sum of squares is negative or not finite"),
    "nan square": ({f"{NAME}.x2": np.full(300, np.nan), **COUNT}, "a sum of squares is negative or not finite"),
    "no count": ({f"{NAME}.xx": XX}, "does not say of how many tokens"),
    "two counts": ({f"{NAME}.xx": XX, f"{NAME}.count": np.ones(2)}, "does not say of how many tokens"),
    "negative count": ({f"{NAME}.xx": XX, f"{NAME}.count": np.array(-1.0)}, "states -1 tokens"),
    "another width": ({f"{NAME}.xx": XX[:9, :9], **COUNT}, "has moments of 9 x 9 in the file, and 300 input features"),
    "no square": ({f"{NAME}.xx": XX[:9], **COUNT}, "has moments of 9 x 300 in the file"),
    "a stack": ({f"{NAME}.xx": XX[None], **COUNT}, "has moments of 1 x 300 x 300 in the file"),
    "half": ({f"{NAME}.xx": (XX * 0).astype(np.float16), **COUNT}, "has moments of type F16: they must be F32 or F64"),
    "means alone": ({f"{NAME}.x": XX[0], **COUNT, f"{DOWN}.xx": XX}, "has no second moments in the file"),
    "held out alone": (sums_of(NAME, TOKENS, "held"), "has no second moments in the file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, case: str) -> None:
    sums, said = REFUSED[case]
    found = opened(tmp_path, sums)
    with pytest.raises(WeightsError) as refusal:
        loaded(found.moment(NAME, 300, None, None))
    assert said in str(refusal.value)
    assert NAME in str(refusal.value)


def test_rounding_of_float32_sums_is_no_asymmetry(tmp_path: Path) -> None:
    xx = (TOKENS.astype(np.float32).T @ TOKENS.astype(np.float32)) * (1 + 1e-7 * RNG.standard_normal((300, 300)))
    xx = xx.astype(np.float32)
    assert (xx != xx.T).any()
    values = loaded(opened(tmp_path, {f"{NAME}.xx": xx, **COUNT}).moment(NAME, 300, None, None))
    np.testing.assert_allclose(values, (xx.astype(float) + xx.T) / 100, rtol=1e-14, atol=1e-14)
    assert (values == values.T).all()


def test_an_input_that_no_token_reached_is_unseen(tmp_path: Path) -> None:
    found = opened(tmp_path, {f"{NAME}.xx": 0 * XX, f"{NAME}.count": np.array(0, np.int64)})
    with pytest.raises(UnseenError, match=f"{NAME} is unseen"):
        found.moment(NAME, 300, None, None)


def test_a_matrix_of_a_stack_has_no_moments_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a stack"):
        opened(tmp_path, sums_of(NAME, TOKENS)).moment(NAME, 300, StackedMatrix(2), None)


def test_weights_are_no_moments(tmp_path: Path) -> None:
    assert read_moments(write_moments(tmp_path / "model.safetensors", {NAME: XX})) is None
