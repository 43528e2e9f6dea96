"""What shades are spread over."""

from __future__ import annotations

from enum import StrEnum


class Contrast(StrEnum):
    """FIXED: the scale of the unit, the same for every model; of a unit without one what the model has."""

    FIXED = "fixed"
    MODEL = "model"
    ROLE = "role"

    @property
    def words(self) -> str:
        """What a key of the shades says of it; nothing of the usual."""
        return "" if self is Contrast.FIXED else f"this {self}"
