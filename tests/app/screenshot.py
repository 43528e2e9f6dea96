"""Makes the README's picture: the explorer on the demo.   python tests/app/screenshot.py docs/explorer.svg"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from rankscope.store.folders import default_root
from rankscope.tui.app import RankScopeApp
from rankscope.tui.session import open_model


async def picture(target: Path) -> None:
    """Open the attention of layer 4, wait for its energy curves, and write what is on screen."""
    model = open_model("demo", default_root())
    app = RankScopeApp(model, default_root(), "cpu", 1, 0.9)
    async with app.run_test(size=(140, 40)) as pilot:
        for key in ("J", "J", "J", "J", "l", "2", "0"):
            await pilot.press(key)
        while not app.explorer.chart.render_line(1).text.strip():
            await pilot.pause(0.05)
        await pilot.pause(0.5)
        target.write_text(app.export_screenshot(title="rankscope-tui demo"))
    app.session.close()


if __name__ == "__main__":
    subprocess.run([Path(sys.executable).with_name("rankscope"), "scan", "demo"], check=True, stdout=subprocess.DEVNULL)
    asyncio.run(picture(Path(sys.argv[1])))
