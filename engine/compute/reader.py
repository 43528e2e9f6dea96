"""What a reader thread does with a job: its tensor's weights brought to the device that will solve it."""

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
    """The landings of one thread, one for each device it has read to."""

    def __init__(self) -> None:
        self._landings: dict[str, Landing] = {"cpu": HOST}

    def prepare(self, device: str) -> None:
        """Page-lock the memory through which a GPU is read to, before the first tensor; where that fails, at it."""
        if device not in self._landings:
            with suppress(RuntimeError):
                self._landings[device] = GpuLanding(device)

    def read(self, job: Job, watch: Watch = UNWATCHED) -> tuple[Weights | Packed, str]:
        """The weights and their digest; on the CPU where the device takes none: the ladder goes on from there.
        `watch` hears of what is fetched.

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
