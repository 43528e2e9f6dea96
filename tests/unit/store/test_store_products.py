"""Spectra of matrices that a model holds as two factors: they have fewer values than the shape says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rankscope.engine.derive.derived import derive
from rankscope.engine.spectrum import FACTORS, FACTORS_ALPHA, Derived, Spectrum
from rankscope.store.spectra import SpectraStore

Make = Callable[..., Spectrum]
Same = Callable[[Spectrum, Spectrum], bool]


def product_of(make: Make, number: int, formula: str, inner: int) -> Spectrum:
    """Spectrum `number` of the product of B, in two blocks, and A, which share `inner`."""
    plain = make(number)
    shape = plain.projection
    blocks = replace(shape, rows=5, cols=inner), replace(shape, rows=shape.rows - 5, cols=inner)
    scale = () if formula == FACTORS else (replace(shape, rows=1, cols=1),)
    parents = (*blocks, replace(shape, rows=inner), *scale)
    made = derive(shape, Derived(formula, 1, "B A", True, parents))
    return replace(plain, projection=made, values=plain.values[:inner], weights_digests=("",) * len(parents))


def test_a_product_has_no_more_values_than_its_factors_share(make: Make, same: Same, tmp_path: Path) -> None:
    kept = [product_of(make, 1, FACTORS, 3), product_of(make, 2, FACTORS_ALPHA, 4), product_of(make, 3, FACTORS, 7)]
    with SpectraStore(tmp_path, "m") as store:
        for future in [store.put(spectrum) for spectrum in kept]:
            future.result()
    again = SpectraStore(tmp_path, "m")
    assert all(same(again.get(spectrum.projection.key), spectrum) for spectrum in kept)
