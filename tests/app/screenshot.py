"""Draw the pictures of README and docs, the explorer on the demo:   make pictures"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from app_looking import SMALL, View, exploring

from rankscope.store.folders import default_root

MIDDLE = (140, 42)
# Size and keys. "@" waits until the chart is drawn, "=text" until that is on screen; ":text" and "/text" are typed.
PICTURES = {
    "explorer": (MIDDLE, [":unit k/k0", ":4", "2", "@", ":k 64"]),
    "overview": (SMALL, ["3", "l", "l", "l", "l", "j", "@"]),
    "layers": (MIDDLE, [":unit k/k0", ":22", "4", "f", "@"]),
    "compare": (MIDDLE, [":mark layers.[0-3].attention.value", "6", "2"]),
    "heads": (MIDDLE, ["7", "L", "L", "L", "=7 heads  QK", *"jjjlllll"]),
    "directions": (MIDDLE, ["/layers.28.mlp.up", "n", "=layers.28.mlp.up", "i", "=sigma_1 ="]),
    "plan": (MIDDLE, [":plan 20%", "=worst first"]),
}


async def picture(target: Path, size: tuple[int, int], keys: list[str]) -> None:
    """Press the keys, wait for the chart, and write what is on screen."""
    async with exploring("demo", default_root(), size) as view:
        for key in keys:
            await _press(view, key)
        await view.rests()
        target.write_text(view.app.export_screenshot(title="rankscope-tui demo"))


async def _press(view: View, key: str) -> None:
    if key == "@":
        await view.rests()
    elif key.startswith("="):
        await view.sees(key[1:])
    elif key.startswith((":", "/")):
        await view.press({":": "colon", "/": "slash"}[key[0]])
        await view.type(key[1:])
    else:
        await view.press(key)


if __name__ == "__main__":
    scan = [Path(sys.executable).with_name("rankscope"), "scan", "demo", "--derived", "heads"]
    subprocess.run(scan, check=True, stdout=subprocess.DEVNULL)
    for name, (size, keys) in PICTURES.items():
        asyncio.run(picture(Path(sys.argv[1]) / f"{name}.svg", size, keys))
