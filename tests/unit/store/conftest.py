"""Numbered spectra: every process of a test can make the same one and check it to the bit."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from functools import partialmethod
from typing import Any

import numpy as np
import pytest

from rankscope.engine.spectrum import Projection, Provenance, Run, Slice, Source, Spectrum, digest

Make = Callable[..., Spectrum]

SOURCE = Source("org/model", "c" * 40, "model-00001-of-00002.safetensors", "5" * 64, 123_456_789_012, True)
RUN = Run("run-1", "rankscope-tui 0.1.0", "2.9.1", "12.8", "570.1", "host", "rankscope scan", "2025-01-02T03:00:00Z")


def make_spectrum(number: int, count: int = 12, **changes: Any) -> Spectrum:
    """Spectrum `number`; `changes` replace fields of it, of its projection or of its provenance."""
    values = np.sort(np.random.default_rng(number).gamma(2.0, 10.0, count))[::-1].copy()
    projection = Projection(
        address=f"layers.{number}.attention.key",
        tensor=f"model.layers.{number}.self_attn.qkv.weight",
        slice=Slice(0, 1, count, count) if number % 2 else None,
        tower=None,
        layer=number,
        block="attention",
        role="key",
        expert=None,
        rows=count,
        cols=3 * count,
        dtype="BF16",
        dequantisation="",
        transposed=False,
        source=SOURCE,
        key=digest("key", number),
    )
    spectrum = Spectrum(
        projection=projection,
        values=values,
        provenance=Provenance(float(np.linalg.norm(values)), "gram", 3, "float64", 1e-12, 3e-8, "cpu", 0.25),
        computed_at=f"2025-01-02T03:04:05.{number:06d}Z",
        weights_digests=("",),
        run=RUN,
    )
    changed: dict[str, Any] = {}
    for name, part in (("projection", projection), ("provenance", spectrum.provenance)):
        of_part = {field: changes.pop(field) for field in part.__dataclass_fields__ if field in changes}
        changed[name] = replace(part, **of_part)
    return replace(spectrum, **changed, **changes)


def same(one: Spectrum, other: Spectrum) -> bool:
    """Equal to the bit in every field."""
    return replace(one, values=None) == replace(other, values=None) and (  # type: ignore[arg-type]
        one.values.dtype == other.values.dtype and one.values.tobytes() == other.values.tobytes()
    )


@pytest.fixture(name="make")
def make_fixture() -> Make:
    return make_spectrum


@pytest.fixture(name="same")
def same_fixture() -> Callable[[Spectrum, Spectrum], bool]:
    return same


@pytest.fixture
def every() -> Callable[[Iterable[int], int], list[int]]:
    """All of a list of places in `make faults`; otherwise a sample of this size, the same each time."""

    def chosen(places: Iterable[int], count: int) -> list[int]:
        found = list(places)
        return found if os.environ.get("RANKSCOPE_FAULTS") == "all" else random.Random(count).sample(found, count)

    return chosen


@pytest.fixture(autouse=True)
def _saves_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a save that never ends fail the test that waits for it, instead of hanging it."""
    for name in ("result", "exception"):
        real = getattr(Future, name)
        monkeypatch.setattr(Future, name, partialmethod(_within, real))


def _within(future: Future[Any], real: Callable[..., Any], timeout: float | None = 60) -> Any:
    return real(future, timeout)
