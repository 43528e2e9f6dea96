"""From the command line to the running explorer, and out of it again."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path


def run_app(args: Namespace, root: Path) -> int:
    """Open the model (downloading it first, with a progress bar), then show it until the user quits."""
    from .session import CLOSE_SECONDS, open_model

    name = args.model
    if name is None:
        from .screens.picker import Picker

        name = Picker(root).run(mouse=False)
        if name is None:
            return 0
    model = open_model(name, root)
    for warning in model.checkpoint.warnings if model.checkpoint else ():
        print(warning, file=sys.stderr)
    from .app import RankScopeApp

    app = RankScopeApp(model, root, args.device, args.threads, args.threshold)
    app.run(mouse=False)  # keyboard only: the mouse stays the terminal's, for selecting text
    app.explorer.painter.close()
    if not app.session.close(CLOSE_SECONDS):
        # Everything finished is saved; a thread inside LAPACK would hold up or crash an orderly exit.
        sys.stdout.flush()
        os._exit(app.return_code or 0)
    return app.return_code or 0
