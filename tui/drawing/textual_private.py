"""Every underscored name of Textual that we use: where to look first when its version is raised.

Only a test imports this. It fails if Textual no longer has a name, or if a use is missing here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from textual.app import App
from textual.dom import DOMNode
from textual.drivers.linux_driver import LinuxDriver
from textual.message_pump import MessagePump
from textual.widgets import Tree


@dataclass(frozen=True, slots=True)
class Use:
    """`file` (below tui/) uses `name` of `owner`, because `why`."""

    owner: type[App[Any] | DOMNode | MessagePump | LinuxDriver]
    name: str
    file: str
    why: str


_GUARD = "screens/guard.py"
_TERMINAL = "screens/terminal_driver.py"
USES = (
    Use(App, "_filters", "drawing/nearest_colour.py", "a last step of our own; Textual lets only its own be chosen"),
    Use(App, "_filters", _TERMINAL, "a last step of our own, outside UTF-8"),
    Use(App, "_driver", _TERMINAL, "whose terminal has to be put back at once, without the event loop"),
    Use(LinuxDriver, "_file", _TERMINAL, "what it writes to: stderr, which may be anything else"),
    Use(App, "_exception", _GUARD, "what a test's pilot raises when the test is over"),
    Use(App, "_exception_event", _GUARD, "what a test's pilot waits for"),
    Use(App, "_handle_exception", _GUARD, "overridden: the errors of timers, workers and layout end here"),
    Use(App, "_register_child", _GUARD, "overridden: every widget passes here once, before its first message"),
    Use(App, "_return_code", _GUARD, "the exit status where nothing is on the screen yet: exit() would wait for it"),
    Use(MessagePump, "_close_messages_no_wait", _GUARD, "the end without waiting for a queue that may be stuck"),
    Use(
        MessagePump, "_dispatch_message", _GUARD, "overridden: the one place where a handler's exception can be caught"
    ),
    Use(Tree, "_clear_line_cache", "widgets/projection_tree.py", "new colours without a new layout of the whole tree"),
)
