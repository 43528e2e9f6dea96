"""Every key of the explorer as data: key, action, footer text, id for keymaps, and help text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from textual.binding import Binding, BindingType

from ..data.grid import LAYER
from ..data.views import keyed

SUSPEND = "suspend"
AT_ANY_TIME = ("quit_at_once", SUSPEND)
"""Bindings that hold in dialogs and menus too: Textual tries the app's bindings last, and not at all from a dialog."""
ASKING = ("filter", "command", "scan", "quit", "unit", "weight", "export", "inspect", "help")
"""Actions that finish before a pane gets the next key: ":12" may arrive in one packet, and a key after "s" is for its
question. Changing panes need not finish: "jj3j" is processed in order, each key by the pane that has the focus then."""
NOT_IN_PROMPTS = (*ASKING, "pane", "next_pane")
"""Actions whose keys are characters, or do nothing, in an open prompt."""


def _keys(*rows: tuple[str, str, str, str, str]) -> list[BindingType]:
    return [
        Binding(
            key, action, name, id=ident, tooltip=tooltip, show=False, priority=action in ASKING or ident in AT_ANY_TIME
        )
        for key, action, name, ident, tooltip in rows
    ]


EXPLORER = _keys(
    *((str(view.key), f"pane({view.key})", view.name, f"view.{view.name}", view.help) for view in keyed()),
    ("tab", "next_pane(1)", "next pane", "pane.next", "Next pane"),
    ("shift+tab", "next_pane(-1)", "previous pane", "pane.previous", "Previous pane"),
    ("J", "step_layer(1)", "next layer", "step.layer_next", "The same role in the next layer"),
    ("K", "step_layer(-1)", "previous layer", "step.layer_previous", "The same role in the previous layer"),
    ("L", "step_role(1)", "next role", "step.role_next", "The next role of the layer"),
    ("H", "step_role(-1)", "previous role", "step.role_previous", "The previous role of the layer"),
    ("t", "threshold(1)", "next threshold", "threshold.next", "Next energy threshold; :t 97 for any"),
    ("T", "threshold(-1)", "previous threshold", "threshold.previous", "Previous energy threshold"),
    ("u", "unit", "unit", "unit", "Unit of the heatmap: k, %, k/k0, k/kf, k/k*, E(k) ..."),
    ("w", "weight", "weighting", "weight", "Weighting: none, norm or a file; :weight FILE"),
    ("v", "gauge", "gauge", "gauge", "Gauge: raw, or gains folded and neurons balanced"),
    ("z", "zoom", "zoom", "zoom", "Heatmap: overview or table; charts: small multiples"),
    ("f", "full", "full screen", "full", "Only the focused pane; again, or esc: all panes"),
    ("a", "axes", "axes", "axes", "Axes: log x log, log y, linear"),
    ("r", "relative", "relative", "relative", "Singular values relative to sigma_1, or as they are"),
    (
        "full_stop",
        "rank(1)",
        "rank up",
        "rank.next",
        "Rank a hundredth up; :k 512, :k q=96 kv=64 set it",
    ),
    ("comma", "rank(-1)", "rank down", "rank.previous", "Rank a hundredth down"),
    ("i", "inspect", "directions", "inspect", "What the first direction of the projection is"),
    ("d", "side", "A B B/A delta", "side", "Two models: A, B, B/A, delta; :against MODEL"),
    ("b", "outlier(1)", "next outlier", "outlier.next", "Next outlier among layers and experts: 3 MAD"),
    ("B", "outlier(-1)", "previous outlier", "outlier.previous", "Previous outlier among layers and experts"),
    ("space", "mark", "mark", "mark", "Mark the selection for comparison; again: unmark"),
    ("M", "clear_marks", "clear marks", "mark.clear", "Take all marks away"),
    ("enter", "compute", "compute", "compute", "Compute the selection first; open what is computed"),
    ("s", "scan", "scan", "scan", "Compute what the filter shows"),
    ("x", "stop", "stop", "stop", "Stop the scan after the running projection"),
    ("e", "export", "export", "export", "Write what is on screen as CSV, SVG or PNG"),
    ("y", "yank", "yank", "yank", "Copy the number under the cursor"),
    ("slash", "filter", "filter", "filter", "Filter by address: key, layers.3, *.mlp.*, 3dwn"),
    ("n", "match(1)", "next match", "filter.next", "Next projection that the filter shows"),
    ("N", "match(-1)", "previous match", "filter.previous", "Previous projection that the filter shows"),
    ("colon", "command", "command", "command", "Command line: :12  :t 97  :k 512  :k q=96 kv=64"),
    ("escape,backspace", "back", "back", "back", "Undo: pane, rank, experts, chart, filter; else tree"),
    ("question_mark", "help", "help", "help", "Keys of the focused pane, marks, and a glossary"),
    ("q", "quit", "quit", "quit", "Quit; asks while a scan runs"),
)

TREE = _keys(
    ("up,k", "cursor_up", "up", "tree.up", "Line up"),
    ("down,j", "cursor_down", "down", "tree.down", "Line down"),
    ("left,h", "close_node", "close", "tree.close", "Close, or go to the parent"),
    ("right,l", "open_node", "open", "tree.open", "Open, or go to the first child"),
    ("home,g", "scroll_home", "top", "tree.top", "First line"),
    ("end,G", "scroll_end", "bottom", "tree.bottom", "Last line"),
    ("pageup,ctrl+u", "page_up", "page up", "tree.page_up", "A page up"),
    ("pagedown,ctrl+d", "page_down", "page down", "tree.page_down", "A page down"),
    # The tree's enter would open the node; here it computes, as everywhere.
    ("enter", "screen.compute", "compute", "tree.compute", "Compute the selection; open what is computed"),
)

HEATMAP = _keys(
    ("up,k", "move(-1,0)", "up", "heatmap.up", "Previous layer; in the overview: role"),
    ("down,j", "move(1,0)", "down", "heatmap.down", "Next layer; in the overview: role"),
    ("left,h", "move(0,-1)", "left", "heatmap.left", "Previous role; in the overview: layer"),
    ("right,l", "move(0,1)", "right", "heatmap.right", "Next role; in the overview: layer"),
    ("home,g", "jump(-1)", "top", "heatmap.top", "First layer"),
    ("end,G", "jump(1)", "bottom", "heatmap.bottom", "Last layer"),
    ("pageup,ctrl+u", "half(-1)", "half up", "heatmap.half_up", "Half a page up"),
    ("pagedown,ctrl+d", "half(1)", "half down", "heatmap.half_down", "Half a page down"),
)

HEADS = _keys(
    ("up,k", "move(-1,0)", "up", "heads.up", "Previous head"),
    ("down,j", "move(1,0)", "down", "heads.down", "Next head"),
    ("left,h", "move(0,-1)", "left", "heads.left", "Previous layer"),
    ("right,l", "move(0,1)", "right", "heads.right", "Next layer"),
    ("J", "layer(1)", "next layer", "heads.layer_next", "The same head in the next layer"),
    ("K", "layer(-1)", "previous layer", "heads.layer_previous", "The same head in the previous layer"),
    ("L", "kind(1)", "next kind", "heads.kind_next", "Next of query, key, value, QK, OV, OV by KV head"),
    ("H", "kind(-1)", "previous kind", "heads.kind_previous", "Previous of these"),
    ("home,g", "jump(-1)", "first", "heads.first", "First layer"),
    ("end,G", "jump(1)", "last", "heads.last", "Last layer"),
    ("pageup,ctrl+u", "half(-1)", "half back", "heads.half_back", "Half of the layers back"),
    ("pagedown,ctrl+d", "half(1)", "half on", "heads.half_on", "Half of the layers on"),
)

CHART = _keys(
    ("down,j", "step(1)", "next layer", "chart.next", "The same in the next layer"),
    ("up,k", "step(-1)", "previous layer", "chart.previous", "The same in the previous layer"),
    ("right,l", "walk(1)", "rank up", "chart.right", "The rank cursor a column to the right"),
    ("left,h", "walk(-1)", "rank down", "chart.left", "The rank cursor a column to the left"),
    ("pagedown,ctrl+d", "walk(10)", "ten up", "chart.page_right", "The rank cursor ten columns to the right"),
    ("pageup,ctrl+u", "walk(-10)", "ten down", "chart.page_left", "The rank cursor ten columns to the left"),
)

TABLE = _keys(
    ("up,k", "move(-1,0)", "up", "table.up", "Previous projection"),
    ("down,j", "move(1,0)", "down", "table.down", "Next projection"),
    ("left,h", "move(0,-1)", "left", "table.left", "Previous column"),
    ("right,l", "move(0,1)", "right", "table.right", "Next column"),
    ("o", "sort", "sort", "table.sort", "Sort by the column, largest first; again: smallest first"),
    ("home,g", "jump(-1)", "top", "table.top", "First row"),
    ("end,G", "jump(1)", "bottom", "table.bottom", "Last row"),
    ("pageup,ctrl+u", "half(-1)", "half up", "table.half_up", "Half a page up"),
    ("pagedown,ctrl+d", "half(1)", "half down", "table.half_down", "Half a page down"),
)

DELTA = _keys(
    ("up,k", "move(-1,0)", "up", "delta.up", "Previous projection"),
    ("down,j", "move(1,0)", "down", "delta.down", "Next projection"),
    ("left,h", "move(0,-1)", "left", "delta.left", "Previous column"),
    ("right,l", "move(0,1)", "right", "delta.right", "Next column"),
    ("o", "sort", "sort", "delta.sort", "Sort by the column, largest first; again: smallest first"),
    ("home,g", "jump(-1)", "top", "delta.top", "First row"),
    ("end,G", "jump(1)", "bottom", "delta.bottom", "Last row"),
    ("pageup,ctrl+u", "half(-1)", "half up", "delta.half_up", "Half a page up"),
    ("pagedown,ctrl+d", "half(1)", "half down", "delta.half_down", "Half a page down"),
)

COMPARE = _keys(
    ("up,k", "move(-1,0)", "up", "compare.up", "Previous metric"),
    ("down,j", "move(1,0)", "down", "compare.down", "Next metric"),
    ("left,h", "move(0,-1)", "left", "compare.left", "Previous mark"),
    ("right,l", "move(0,1)", "right", "compare.right", "Next mark"),
    ("home,g", "jump(-1)", "top", "compare.top", "First metric"),
    ("end,G", "jump(1)", "bottom", "compare.bottom", "Last metric"),
    ("pageup,ctrl+u", "half(-1)", "half up", "compare.half_up", "Half a page up"),
    ("pagedown,ctrl+d", "half(1)", "half down", "compare.half_down", "Half a page down"),
)

APP = _keys(
    ("ctrl+c", "interrupt", "interrupt", "interrupt", "Stop; twice quits"),
    ("ctrl+z", "suspend_process", "suspend", SUSPEND, "Suspend: back to the shell; fg comes back"),
    ("ctrl+q", "quit", "quit at once", "quit_at_once", "Quit, from a question or a command line too"),
)


def at_any_time(suspend: bool) -> list[BindingType]:
    """The bindings of APP, without the one that the setting `suspend` turns off."""
    return [b for b in APP if suspend or not (isinstance(b, Binding) and b.id == SUSPEND)]


PLAN = _keys(
    ("plus", "cut(1)", "cut more", "plan.more", "The plan cuts one per cent more"),
    ("minus", "cut(-1)", "cut less", "plan.less", "The plan cuts one per cent less"),
)
"""The explorer's bindings while a plan is shown."""

PANES = {
    "tree": TREE,
    "heatmap": HEATMAP,
    "table": TABLE,
    "compare": COMPARE,
    "heads": HEADS,
    "delta": DELTA,
    "chart": CHART,
}

PROMPT: list[BindingType] = [
    # Handle ctrl+c before the input line, which would take it for copying.
    Binding("escape,ctrl+c", "cancel", "back", id="prompt.cancel", tooltip="Back", show=False, priority=True),
    *_keys(
        ("tab", "complete", "complete", "prompt.complete", "Complete the command as far as it is clear"),
        ("up", "history(-1)", "earlier", "prompt.earlier", "The command before this one"),
        ("down", "history(1)", "later", "prompt.later", "The next command, or what was being typed"),
    ),
]

CHOICE = _keys(
    ("down,j", "cursor(1)", "down", "choice.down", "Next line"),
    ("up,k", "cursor(-1)", "up", "choice.up", "Previous line"),
    ("escape,q,backspace,ctrl+c", "leave", "back", "choice.back", "Back"),
)

CONFIRM = _keys(
    ("y", "answer(True)", "yes", "confirm.yes", "Yes; so does the key that asked, pressed again"),
    ("escape,n,q", "answer(False)", "no", "confirm.no", "No"),
)

HELP = _keys(
    ("escape,question_mark,q,backspace,enter", "close", "close", "help.close", "Close"),
    ("down,j", "scroll(1)", "down", "help.down", "Line down"),
    ("up,k", "scroll(-1)", "up", "help.up", "Line up"),
    ("pagedown,ctrl+d,space", "scroll(10)", "page down", "help.page_down", "Ten lines down"),
    ("pageup,ctrl+u", "scroll(-10)", "page up", "help.page_up", "Ten lines up"),
    ("end,G", "words", "words", "help.words", "The glossary"),
    ("home,g", "top", "keys", "help.top", "The first key"),
)

READING = _keys(
    ("escape,i,q,backspace,enter", "close", "close", "reading.close", "Close"),
    ("down,j", "scroll(1)", "down", "reading.down", "Line down"),
    ("up,k", "scroll(-1)", "up", "reading.up", "Line up"),
    ("pagedown,ctrl+d,space", "scroll(10)", "page down", "reading.page_down", "Ten lines down"),
    ("pageup,ctrl+u", "scroll(-10)", "page up", "reading.page_up", "Ten lines up"),
)

PICKER = _keys(
    ("down,ctrl+n", "cursor(1)", "down", "picker.down", "Next model"),
    ("up,ctrl+p", "cursor(-1)", "up", "picker.up", "Previous model"),
    ("escape,ctrl+c", "leave", "quit", "picker.quit", "Take back what is typed; else quit"),
    ("ctrl+z", "suspend_process", "suspend", "picker.suspend", "Suspend: back to the shell; fg comes back"),
)


NAMES = {
    "question_mark": "?", "slash": "/", "colon": ":", "full_stop": ".", "comma": ",", "escape": "esc",
    "pagedown": "pgdn", "pageup": "pgup", "plus": "+", "minus": "-",
}  # fmt: skip


def pane_table(name: str) -> list[BindingType]:
    """The keys of one pane; a plan has those of the heatmap."""
    return PANES.get("heatmap" if name == "plan" else name, [])


def actions() -> dict[str, str]:
    """The actions of the explorer's bindings, by their ids."""
    return {b.id or "": b.action for b in (*EXPLORER, *PLAN) if isinstance(b, Binding)}


def keys_of(table: list[BindingType], ident: str, keymap: Mapping[str, str]) -> list[str]:
    """Textual's names of the keys of the binding with this id, under the user's keymap."""
    binding = next(b for b in table if isinstance(b, Binding) and b.id == ident)
    return [key.strip() for key in keymap.get(ident, binding.key).split(",")]


def first_key(ident: str, keymap: Mapping[str, str]) -> str:
    """The first key of one of the explorer's bindings, as a person writes it."""
    key = keys_of(EXPLORER, ident, keymap)[0]
    return NAMES.get(key, key)


def worded(table: Iterable[BindingType], rows: str) -> list[Binding]:
    """The keys of a table, in their names and help texts `rows` (Grid.rows_are) for the word layer: a series has steps,
    or whatever its models are called."""

    def said(text: str) -> str:
        return re.sub(rf"\b{LAYER}\b", rows, text)

    return [
        replace(b, description=said(b.description), tooltip=said(b.tooltip)) for b in table if isinstance(b, Binding)
    ]


def shown_keys(binding: Binding, keymap: Mapping[str, str]) -> str:
    """The keys of a binding under the user's keymap, as a person writes them."""
    keys = keymap.get(binding.id or "", binding.key)
    return " ".join(NAMES.get(key.strip(), key.strip()) for key in keys.split(","))
