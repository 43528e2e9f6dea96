"""A stored spectrum without its values: everything that a table shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rankscope.engine import metrics
from rankscope.engine.spectrum import THRESHOLDS, Projection, Provenance, Run, Spectrum, Values


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored spectrum without its values; the fields of `Spectrum` keep their meaning and units.

    `ranks` maps each stored threshold to its threshold rank. `effective_rank` and `stable_rank` are None for a zero
    matrix, `sigma_max` and `sigma_min` (units of the weights) for an empty one. `generation` orders results where
    clocks are wrong and `computed_at` cannot (columns.GENERATION).
    """

    projection: Projection
    provenance: Provenance
    computed_at: str
    weights_digests: tuple[str, ...]
    run: Run
    ranks: Mapping[float, int]
    effective_rank: float | None
    stable_rank: float | None
    sigma_max: float | None
    sigma_min: float | None
    generation: int = 0


def entry_of(spectrum: Spectrum) -> Entry:
    """Make the entry of a spectrum, with ranks at THRESHOLDS."""
    values = spectrum.values
    if spectrum.projection.is_directions:
        return _entry_of_directions(spectrum)
    return Entry(
        projection=spectrum.projection,
        provenance=spectrum.provenance,
        computed_at=spectrum.computed_at,
        weights_digests=spectrum.weights_digests,
        run=spectrum.run,
        ranks=dict(zip(THRESHOLDS, metrics.threshold_ranks(values, THRESHOLDS), strict=True)),
        effective_rank=metrics.effective_rank(values),
        stable_rank=metrics.stable_rank(values),
        sigma_max=float(values[0]) if values.size else None,
        sigma_min=float(values[-1]) if values.size else None,
    )


def _entry_of_directions(spectrum: Spectrum) -> Entry:
    """Ranks are 0, effective rank and sigma_min None: the leading values do not determine them."""
    norm, top = spectrum.provenance.frobenius_norm, float(spectrum.values[0])
    return Entry(
        projection=spectrum.projection,
        provenance=spectrum.provenance,
        computed_at=spectrum.computed_at,
        weights_digests=spectrum.weights_digests,
        run=spectrum.run,
        ranks=dict.fromkeys(THRESHOLDS, 0),
        effective_rank=None,
        stable_rank=(norm / top) ** 2 if top else None,
        sigma_max=top,
        sigma_min=None,
    )


def spectrum_of(entry: Entry, values: Values) -> Spectrum:
    """The spectrum that has this entry and these values: float64, shape (projection.count,)."""
    return Spectrum(entry.projection, values, entry.provenance, entry.computed_at, entry.weights_digests, entry.run)
