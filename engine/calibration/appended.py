"""Second moments of inputs with a last feature that is always 1, for matrices with their biases as a last column."""

from __future__ import annotations

from dataclasses import dataclass

from ..derive.biases import appended
from ..moment import Moment
from ..spectrum import Projection
from .file_weighting import FileWeighting

APPENDED = "appended:"
"""The prefix of the file's name in operands."""


@dataclass(frozen=True, slots=True)
class AppendedWeighting:
    """The Weighting of a file that has the means of the inputs, with moments made by biases.appended."""

    under: FileWeighting

    @property
    def name(self) -> str:
        """See Weighting."""
        return self.under.name

    @property
    def is_centred(self) -> bool:
        """See Weighting."""
        return self.under.is_centred

    @property
    def label(self) -> str:
        """See Weighting."""
        return self.under.label

    def moment(self, projection: Projection) -> Moment:
        """See Weighting.

        Raises:
            WeightsError: as FileWeighting.moment, or the file has no mean of that input.
        """
        found = appended(self.under.moment(projection), self.under.mean(projection))
        return found.of_file(f"{APPENDED}{self.under.file}")
