"""The range of numbers that the shades cover."""

from __future__ import annotations

from enum import StrEnum


class Contrast(StrEnum):
    """FIXED: the scale of the unit, the same for every model; for a unit without a scale the range of the model's
    numbers."""

    FIXED = "fixed"
    MODEL = "model"
    ROLE = "role"

    @property
    def words(self) -> str:
        """The text for the legend of the shades; "" for the default."""
        return "" if self is Contrast.FIXED else f"this {self}"
