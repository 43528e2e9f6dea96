"""What a checkpoint is made from: the listings of its files, on a disk or a server, and what is said beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..formats.format import Format
from ..formats.tensor import FileStamp, Tensor
from .ranges import RemoteFile

RemoteListing = tuple[list[Tensor], FileStamp | RemoteFile]


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """The contents of a Checkpoint. `named` maps tensor names to files, from an index; `adapter` is the
    adapter_config.json that was fetched already, {} if there was none."""

    name: str
    commit: str
    config: Mapping[str, Any]
    format: Format
    listed: Mapping[Path, RemoteListing]
    named: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    adapter: Mapping[str, Any] = field(default_factory=dict)
