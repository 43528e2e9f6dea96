"""No MODEL given: choose among stored and cached models and the demo."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from rankscope.engine.errors import printable

from ..settings import keys
from .terminal import TerminalDriver, draw_after_fg, use_plain

if TYPE_CHECKING:
    from rankscope.store.models import StoredModel


class Picker(App[str]):
    """Returns the chosen model's name, None where the user left."""

    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = keys.PICKER

    def __init__(self, root: Path, said: str = "", suspend: bool = True) -> None:
        """`said`: why the model that was chosen before did not open. `suspend` as in the settings."""
        super().__init__(driver_class=TerminalDriver)
        use_plain(self)
        self._root = root
        self._said = said
        self._suspend = suspend

    def compose(self) -> ComposeResult:
        found = choices(self._root)
        options = OptionList(
            *(Option(Text(f"{printable(name)}   {kind}"), id=str(i)) for i, (name, kind) in enumerate(found)),
            id="picker",
        )
        options.border_title = "open a model"
        self._names = [name for name, _ in found]
        yield options
        if self._said:
            yield Static(Text(printable(self._said, 500)), id="said")
        yield Static(" enter opens   q quits   or start with  rankscope-tui org/name | folder | file ", id="keys")

    def on_mount(self) -> None:
        draw_after_fg(self)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.exit(self._names[event.option_index])

    def action_cursor(self, step: int) -> None:
        """Next or previous line."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key works: the settings may forbid one."""
        if action == "suspend_process" and not self._suspend:
            return False
        return super().check_action(action, parameters)

    def action_leave(self) -> None:
        """Quit without a choice."""
        self.exit(None)


def choices(root: Path) -> list[tuple[str, str]]:
    """Name and kind of what can be opened without a request: stored, then cached, then the demo."""
    from rankscope.engine.checkpoint.hub import Place, cached_models, whole
    from rankscope.engine.checkpoint.open import demo_file
    from rankscope.engine.errors import InputError
    from rankscope.store.models import stored_models

    found = {model.name: _kind(model) for model in stored_models(root)}
    with suppress(InputError):  # the demo is not installed
        if (kind := found.pop(str(demo_file().resolve()), "")) != "":
            found["demo"] = f"SmolLM2-135M-Instruct, 4-bit, {kind}"
    for name in cached_models():
        if name not in found:
            found[name] = "in the Hub cache" if whole(Place(name))[0] else "in the Hub cache, not whole"
    found.setdefault("demo", "SmolLM2-135M-Instruct, 4-bit")
    return list(found.items())


def _kind(model: StoredModel) -> str:
    if model.unread:
        return "its folder in the store cannot be read: see  rankscope ls"
    files = len(model.damaged)
    damaged = f", {files} damaged or unread file{'s' * (files > 1)}: see  rankscope ls" if files else ""
    return f"{model.spectra} spectra stored{damaged}"
