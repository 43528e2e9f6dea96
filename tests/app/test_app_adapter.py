"""An adapter in the explorer: products under the modules that they change, next to their factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_looking import SMALL, exploring
from app_models import numpy_rank
from factor_files import peft

LARGE = (200, 60)


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_a_scan_computes_products_and_factors(size: tuple[int, int], tmp_path: Path, root: Path) -> None:
    files = peft()
    folder = files.write(tmp_path / "adapter")
    rank = numpy_rank(np.asarray(files.meant["layers.1.attention.query"]), 0.9)
    async with exploring(folder, root, size) as seen:
        await seen.scan()
        await seen.sees("15/15 stored")
        await seen.press("3")
        await seen.rests()
        heads = " ".join(seen.pane("heatmap"))
        assert all(role in heads for role in ("query", "query_A", "query_B", "value", "value_A"))
        await seen.press("J", "L", "1")
        await seen.rests()
        assert seen.selected == "layers.1.attention.query"
        assert f"k90 {rank}" in seen.pane("chart")[-1]
        if size == LARGE:
            assert "from 2.887 B A, r 3" in seen.pane("chart")[-1]
        await seen.press("i")
        assert "stored as two factors" in seen.foot
        await seen.press("0", "G", "l")
        await seen.rests()
        assert any(label.startswith("# lm_head.weight") for label in seen.labels)
