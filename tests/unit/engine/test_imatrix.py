"""Importance matrices of llama.cpp: both layouts, and files converted from one to the other."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibration_files import Stats, converted, legacy, stats, write_gguf
from numpy.typing import NDArray

from rankscope.engine.calibration.imatrix import Imatrix, read_gguf, read_legacy
from rankscope.engine.calibration.moment_reader import StackedMatrix
from rankscope.engine.errors import InputError, UnseenError, WeightsError
from rankscope.engine.moment import Moment

QUERY, EXPERTS, STACK = "blk.0.attn_q.weight", "blk.1.ffn_gate_exps.weight", "blk.0.stack.weight"
TOKENS = 512 * 125  # 125 chunks: dividing and multiplying by it rounds
HELD = {
    QUERY: stats(96, (TOKENS,)),
    EXPERTS: stats(40, (TOKENS, 0, 4711, 3)),
    STACK: stats(24, (TOKENS,), matrices=3),
}


def numbers(moment: Moment) -> NDArray[np.float64]:
    assert moment.form == "diagonal"
    (operand,) = moment.operands
    assert operand.load is not None
    values = operand.load()
    assert values.dtype == np.float64
    assert values.shape == (moment.cols,)
    return values


def opened_gguf(file: Path) -> Imatrix:
    found = read_gguf(file)
    assert found is not None
    return found


def in_gguf(folder: Path) -> Imatrix:
    return opened_gguf(write_gguf(folder / "imatrix.gguf", HELD))


def of_old(folder: Path, trailer: bool = True) -> Imatrix:
    file = folder / "imatrix.dat"
    file.write_bytes(legacy(HELD, trailer=trailer))
    return read_legacy(file)


def of_converted(folder: Path) -> Imatrix:
    return opened_gguf(write_gguf(folder / "converted.gguf", converted(HELD)))


LAYOUTS: dict[str, Callable[[Path], Imatrix]] = {
    "gguf": in_gguf,
    "dat": of_old,
    "dat without a trailer": lambda folder: of_old(folder, trailer=False),
    "dat as gguf": of_converted,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_squares_of_each_layout(tmp_path: Path, layout: str) -> None:
    found = LAYOUTS[layout](tmp_path)
    assert set(found.names) == set(HELD)
    tolerance = 0 if layout == "gguf" else 2**-23  # the .dat rounds twice
    for name, matrix, cols in (
        (QUERY, None, 96),
        (EXPERTS, StackedMatrix(0), 40),
        (EXPERTS, StackedMatrix(2, 4), 40),
        (EXPERTS, StackedMatrix(3), 40),
        (STACK, StackedMatrix(2), 24),
    ):
        sums, counts = HELD[name]
        row = matrix.number if matrix else 0
        expected = sums[row].astype(float) / counts[row if len(counts) > 1 else 0]
        np.testing.assert_allclose(numbers(found.moment(name, cols, matrix, None)), expected, rtol=tolerance)


def test_the_layouts_of_one_run_have_one_digest(tmp_path: Path) -> None:
    opened = [in_gguf(tmp_path), of_old(tmp_path), of_converted(tmp_path)]
    for name, matrix, cols in (
        (QUERY, None, 96),
        (EXPERTS, StackedMatrix(0), 40),
        (EXPERTS, StackedMatrix(2), 40),
        (STACK, StackedMatrix(1), 24),
    ):
        digests = {found.moment(name, cols, matrix, None).digest for found in opened}
        assert len(digests) == 1
    of_gguf = opened[0]
    others = {
        of_gguf.moment(name, cols, m, None).digest
        for name, m, cols in ((EXPERTS, StackedMatrix(0), 40), (EXPERTS, StackedMatrix(2), 40))
    }
    assert len(others) == 2
    changed = {QUERY: Stats(HELD[QUERY].sums * np.float32(1 + 2**-20), (TOKENS,))}
    again = opened_gguf(write_gguf(tmp_path / "other.gguf", changed)).moment(QUERY, 96, None, None)
    assert again.digest != of_gguf.moment(QUERY, 96, None, None).digest


@pytest.mark.parametrize("chunk_size", [1, 100, 512, 1000])
def test_one_digest_whatever_the_chunks(tmp_path: Path, chunk_size: int) -> None:
    held = {f"blk.{n}.attn_q.weight": stats(64, (chunk_size * n - n % 2,), seed=n) for n in range(1, 90, 4)}
    of_old = tmp_path / "a.dat"
    of_old.write_bytes(legacy(held, chunk_size=chunk_size))
    old, new = read_legacy(of_old), opened_gguf(write_gguf(tmp_path / "a", held, chunk_size=chunk_size))
    assert old.sums.keys() == new.sums.keys() == held.keys()
    for name in held:
        if held[name].counts[0]:
            assert old.moment(name, 64, None, None).digest == new.moment(name, 64, None, None).digest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_expert_that_no_token_reached_is_unseen(tmp_path: Path, layout: str) -> None:
    found = LAYOUTS[layout](tmp_path)
    with pytest.raises(UnseenError, match=r"expert 1 of blk\.1\.ffn_gate_exps\.weight is unseen"):
        found.moment(EXPERTS, 40, StackedMatrix(1), None)


@pytest.mark.filterwarnings("error")
def test_counts_that_are_no_whole_numbers(tmp_path: Path) -> None:
    held = {QUERY: Stats(np.array([[1, 3e38]], np.float32), (0.25,))}
    assert numbers(opened_gguf(write_gguf(tmp_path / "a.gguf", held)).moment(QUERY, 2, None, None))[0] == 4


def test_ones_are_unseen_only_where_a_count_is_not_known(tmp_path: Path) -> None:
    ones = np.ones((2, 8), np.float32)
    held = {"blk.0.ffn_up_exps.weight": Stats(ones * 7, (7, 7)), "blk.0.ffn_up.weight": Stats(ones[:1] * 7, (7,))}
    found = opened_gguf(write_gguf(tmp_path / "a.gguf", held))
    assert numbers(found.moment("blk.0.ffn_up_exps.weight", 8, StackedMatrix(1), None)).tolist() == [1.0] * 8
    assert numbers(found.moment("blk.0.ffn_up.weight", 8, None, None)).tolist() == [1.0] * 8


def test_what_it_says_of_its_run(tmp_path: Path) -> None:
    assert in_gguf(tmp_path).about == "wiki.train.raw, 125 chunks of 512"
    assert of_old(tmp_path).about == "wiki.train.raw, 125 chunks"
    assert of_old(tmp_path, trailer=False).about == ""
    sets = ["a/1.txt", "C:\\data\\2.txt", "3", "4"]
    many = opened_gguf(write_gguf(tmp_path / "many.gguf", {QUERY: stats(8, (512,))}, data_sets=sets))
    assert many.about == "1.txt, 2.txt, 3, ..., 1 chunk of 512"
    (tmp_path / "cut.dat").write_bytes(legacy(HELD)[:-19])
    assert read_legacy(tmp_path / "cut.dat").about == "125 chunks"


REFUSED = {
    "another width": (QUERY, 95, None, "attn_q.weight takes 96 input features in the file, not 95"),
    "half the width": (QUERY, 48, None, "takes 96 input features in the file, not 48"),
    "experts of another width": (EXPERTS, 80, StackedMatrix(0), "takes 40 input features in the file, not 80"),
    "a stack for a matrix": (EXPERTS, 40, None, "takes 40 input features in the file, not 40"),
    "too few experts": (EXPERTS, 40, StackedMatrix(4), "is a stack of 4 in the file, without number 4"),
    "a matrix for a stack": (QUERY, 96, StackedMatrix(1), "is a stack of 1 in the file, without number 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_shapes_are_refused_by_name(tmp_path: Path, case: str) -> None:
    name, cols, matrix, said = REFUSED[case]
    with pytest.raises(WeightsError) as refusal:
        in_gguf(tmp_path).moment(name, cols, matrix, None)
    assert said in str(refusal.value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cols", [20, 80, 160])
def test_experts_of_another_width_are_refused_where_one_count_stands_for_all(
    tmp_path: Path, layout: str, cols: int
) -> None:
    with pytest.raises(WeightsError, match=r"ffn_gate_exps\.weight takes 40 input features in the file, not"):
        LAYOUTS[layout](tmp_path).moment(EXPERTS, cols, StackedMatrix(0, 4), None)


@pytest.mark.parametrize(
    ("sums", "counts", "said"),
    [
        ([1, -1], (3,), "a sum of squares is negative"),
        ([1, np.inf], (3,), "a sum of squares is not finite"),
        ([np.nan, 1], (3,), "a sum of squares is not finite"),
        ([1, 1], (-3,), "it states -3 tokens"),
        ([1, 1], (np.nan,), "it states nan tokens"),
    ],
)
def test_numbers_that_are_no_moments_are_refused_by_name(
    tmp_path: Path, sums: list[float], counts: tuple[float], said: str
) -> None:
    held = {QUERY: Stats(np.array([sums], np.float32), counts), "blk.0.attn_k.weight": stats(8, (512,))}
    found = opened_gguf(write_gguf(tmp_path / "a.gguf", held))
    with pytest.raises(WeightsError, match=f"{QUERY} has no usable moments: {said}"):
        found.moment(QUERY, 2, None, None)
    assert found.moment("blk.0.attn_k.weight", 8, None, None).cols == 8


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    held = {QUERY: stats(3, (512,)), "blk.0.attn_k.weight": stats(2, (512,))}
    whole = legacy(held, trailer=False)
    trailed = legacy(held)
    in_gguf = write_gguf(tmp_path / "a.gguf", held).read_bytes()
    file = tmp_path / "cut"
    for end in range(len(trailed)):
        file.write_bytes(trailed[:end])
        if end >= len(whole):
            assert len(read_legacy(file).names) == 2
            continue
        with pytest.raises(InputError, match=r"damaged imatrix: .*download it again") as refusal:
            read_legacy(file)
        assert "\n" not in str(refusal.value)
    for end in range(0, len(in_gguf) - 32, 41):
        file.write_bytes(in_gguf[:end])
        with pytest.raises(InputError):
            read_gguf(file)


@pytest.mark.parametrize("number", [-1, 0, 1 << 29, 0x7FFFFFFF])
def test_numbers_in_a_damaged_file_take_no_memory(tmp_path: Path, number: int) -> None:
    whole = legacy({QUERY: stats(3, (512,))}, trailer=False)
    file = tmp_path / "a.dat"
    lengths = (0, 4, 8 + len(QUERY) + 4)  # entries, letters of the name, values
    tracemalloc.start()
    for at in lengths:
        data = bytearray(whole)
        struct.pack_into("<i", data, at, number)
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.dat is a damaged imatrix"):
            read_legacy(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    one = legacy({QUERY: stats(3, (512,))}, trailer=False)
    (tmp_path / "a.dat").write_bytes(struct.pack("<i", 2) + 2 * one[4:])
    with pytest.raises(InputError, match="entry 2 has the name of another"):
        read_legacy(tmp_path / "a.dat")


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "a.gguf", {QUERY: stats(3, (512,))}).read_bytes()
    (tmp_path / "a.gguf").write_bytes(data.replace(b".counts", b".sticks"))
    with pytest.raises(InputError, match=r"it has sums of blk\.0\.attn_q\.weight and no counts"):
        read_gguf(tmp_path / "a.gguf")


def test_a_gguf_file_without_sums_is_none(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "a.gguf", {QUERY: stats(3, (512,))}).read_bytes()
    (tmp_path / "a.gguf").write_bytes(data.replace(b".in_sum2", b".in_some"))
    assert read_gguf(tmp_path / "a.gguf") is None
