"""Reading the weights of a job to the device that will solve it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ..checkpoint.retries import UNWATCHED, Watch
from ..errors import WeightsError
from ..landing import HOST, GpuLanding, Landing
from .job import Job

if TYPE_CHECKING:
    from ..weights import Packed, Weights


class Reader:
    """What one reader thread reads with: a landing for each device that it has read to."""

    def __init__(self) -> None:
        self._landings: dict[str, Landing] = {"cpu": HOST}

    def prepare(self, device: str) -> None:
        """Page-lock the memory through which weights go to a GPU before the first tensor; if it fails, do it later."""
        if device not in self._landings:
            with suppress(RuntimeError):
                self._landings[device] = GpuLanding(device)

    def read(self, job: Job, watch: Watch = UNWATCHED) -> tuple[Weights | Packed, str]:
        """The weights and their digest. They are on the CPU if the device has no room or does not answer: the ladder
        goes on from there. `watch` hears of fetched bytes.

        Raises:
            WeightsError: see Checkpoint.read.
        """
        try:
            if job.device not in self._landings:
                self._landings[job.device] = GpuLanding(job.device)
            return job.checkpoint.read(job.tensor, self._landings[job.device], watch)
        except WeightsError:
            raise
        except RuntimeError:  # no room there, or a lost device
            return job.checkpoint.read(job.tensor, HOST, watch)
