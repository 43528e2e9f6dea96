"""Makes the README's pictures, the explorer on the demo:   make pictures"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from app_looking import SMALL, View, exploring

from rankscope.store.folders import default_root

MIDDLE = (140, 42)
# Size and keys ("@": until the chart is drawn); a text is typed after ":".
PICTURES = {
    "explorer": (MIDDLE, [":unit k/k0", ":4", "2", "@", ":k 64"]),
    "overview": (SMALL, ["3", "l", "l", "l", "l", "j", "@"]),
    "compare": (MIDDLE, [":mark layers.[0-3].attention.value", "6", "2"]),
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
    elif key.startswith(":"):
        await view.press("colon")
        await view.type(key[1:])
    else:
        await view.press(key)


if __name__ == "__main__":
    subprocess.run([Path(sys.executable).with_name("rankscope"), "scan", "demo"], check=True, stdout=subprocess.DEVNULL)
    for name, (size, keys) in PICTURES.items():
        asyncio.run(picture(Path(sys.argv[1]) / f"{name}.svg", size, keys))
