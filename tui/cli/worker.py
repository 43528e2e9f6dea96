"""`rankscope worker`: processes that compute for others, connected by a Dask scheduler."""

from __future__ import annotations

import asyncio
import os
import platform
from argparse import Namespace
from pathlib import Path

from rankscope.engine.compute.cluster import serve
from rankscope.engine.compute.devices import pick

from ..drawing.console import say


def worker(args: Namespace, root: Path) -> int:  # noqa: ARG001 - every command takes the store's root
    """Work for a scheduler until it is gone or a signal comes, in a process for each GPU or one for the CPU."""
    found, notes = pick(args.device)
    for note in notes:
        say(note)
    names = [f"{platform.node()} {device.name} {os.getpid()}" for device in found]
    devices = [device.name for device in found]

    def ready() -> None:
        say(f"computing for {args.address} on {', '.join(devices)}; ctrl+c ends it")

    asyncio.run(serve(args.address, devices, names, args.threads, ready))
    return 0
