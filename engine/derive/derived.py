"""What a matrix made of others is called and known by. Imports neither torch nor numpy."""

from __future__ import annotations

from ..spectrum import Projection, derive

__all__ = ["derive", "is_state"]


def is_state(projection: Projection) -> bool:
    """Whether it is a matrix of the checkpoint in another state: under a weighting, in the fixed gauge."""
    return projection.derived is not None and not projection.derived.is_further
