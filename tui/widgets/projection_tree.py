"""The model as a tree: layers and their blocks, roles over all layers, and tensors that are no projection.

A node's children are made when it is opened: 1 ms for a model of 49,000 nodes, which would take 1 s to make at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.content import Content
from textual.events import Resize
from textual.scroll_view import ScrollView
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Grid, Row, Selection, member_of
from ..drawing.cells import Look
from ..settings import keys
from .heatmap_table import shortened
from .one_style import OneStyle

MARK_STYLES = {"#": "green", "*": "yellow bold", "!": "red bold", "?": "red"}
WIDEST = 60
"""In wider panes the number would be too far from its name, so it ends here."""
LEAST_NAME = 8
BEFORE_TITLE = 2
"""Columns of the border before a title that the text below does not have."""


@dataclass(frozen=True, slots=True)
class TreeItem:
    """A node: its name, what it selects (None: nothing), and a function that makes its children."""

    name: str
    selection: Selection | None = None
    children: Callable[[], Iterable[TreeItem]] | None = None


class ProjectionTree(OneStyle, Tree[TreeItem], inherit_bindings=False):
    """`look` gives the state and number of a projection, and how much of a group is done."""

    BINDINGS: ClassVar[list[BindingType]] = keys.TREE
    ICON_NODE = "> "
    ICON_NODE_EXPANDED = "v "

    def __init__(self, name: str, look: Look, **kwargs: str) -> None:
        super().__init__(Text(printable(name)), TreeItem(name, Selection()), **kwargs)  # type: ignore[arg-type]
        self._look = look
        self._opened: list[TreeNode[TreeItem]] = []
        self._shown_states: dict[int, tuple[object, ...]] = {}
        self._title = ""
        self.grid = Grid((), (), {})
        self.guide_depth = 2

    def set_model(self, grid: Grid, groups: Mapping[str, Sequence[Projection]]) -> None:
        """Show these layers, and below them groups of projections: unassigned tensors, and those missing from one
        model."""
        self.grid = grid
        self._opened = []
        self._shown_states.clear()
        self.root.remove_children()
        for item in self._top(groups):
            self._add(self.root, item)
        self.root.expand()
        if self.root.children:
            self._fill(self.root.children[0])
            self.root.children[0].expand()

    def show_title(self, title: str) -> None:
        """Show a title in the border, and at its end the name of the numbers below; a long title loses its middle."""
        self._title = title
        heading = self._look.lens.title
        room = self._room - BEFORE_TITLE
        text = shortened(title, max(LEAST_NAME, room - len(heading) - 2))
        left = room - cell_len(text)
        text += f"{heading:>{left}}" if left > len(heading) else ""
        if self.border_title is None or text != Content.from_markup(str(self.border_title)).plain:
            self.border_title = Text(text)  # Textual draws the pane again even if the title is the same

    def on_resize(self, _: Resize) -> None:
        self.show_title(self._title)

    @property
    def _room(self) -> int:
        """Columns up to the end of a number. A gap and a scroll bar, shown or not, separate it from the border."""
        return min(WIDEST, self.content_region.width - self.styles.scrollbar_size_vertical - 1)

    def follow(self, selection: Selection) -> None:
        """Move the cursor to a selection, opening nodes on the way, without reporting it.

        Nodes opened for an earlier selection are closed: otherwise a walk through the layers would open them all.
        """
        with self.prevent(Tree.NodeHighlighted):
            opened, self._opened = self._opened, []
            node = self._find(selection)
            path = _path(node)
            for other in opened:
                if other in path:
                    self._opened.append(other)
                else:
                    other.collapse()
            # Reading last_line lays out the opened nodes; before that they have no line for the cursor.
            if node is not None and self.last_line >= 0 and node is not self.cursor_node:
                self.move_cursor(node)

    def update_marks(self) -> None:
        """Draw nodes in view again whose states or numbers have changed."""
        for line in range(self.scroll_offset.y, min(self.last_line + 1, self.scroll_offset.y + self.size.height)):
            node = self.get_node_at_line(line)
            if node is not None and self._shown_states.get(node.id) != self._states_of(node):
                node.refresh()

    def _states_of(self, node: TreeNode[TreeItem]) -> tuple[object, ...]:
        """The states and numbers that a node shows."""
        item, look = node.data, self._look
        if item is None or item.selection is None:
            return ()
        if node.allow_expand:
            return (look.count(item.selection),)
        found = item.selection.projections(self.grid)[:1]
        return tuple(
            (look.mark(p), look.number_text(p), look.width, look.lens.is_greyed(p), p.key in look.marked) for p in found
        )

    def render_label(self, node: TreeNode[TreeItem], base_style: Style, style: Style) -> Text:
        self._shown_states[node.id] = self._states_of(node)
        item = node.data
        room = max(LEAST_NAME, self._room - self.guide_depth * (len(_path(node)) - 1))
        icon = "" if not node.allow_expand else self.ICON_NODE_EXPANDED if node.is_expanded else self.ICON_NODE
        name = printable(item.name) if item else ""
        if item is None or item.selection is None:
            return Text(icon, style=base_style) + Text(name, style=style)
        if node.allow_expand:
            signs = self._signs(item.selection)
            left = room - len(icon) - signs.cell_len
            if left < min(LEAST_NAME, cell_len(name)):
                left, signs = left + signs.cell_len, Text()
            return Text.assemble((icon, base_style), (shortened(name, max(LEAST_NAME, left)), style), signs)
        projections = item.selection.projections(self.grid)
        return self._projection(name, style, projections[0], room) if projections else Text(name, style=style)

    def _signs(self, selection: Selection) -> Text:
        """How many of a group's projections are done, and whether some have failed."""
        count = self._look.count(selection)
        text = Text()
        if count.done and count.done == count.total:
            text.append(" #", style=MARK_STYLES["#"])
        elif count.done:
            text.append(f"  {count.done} of {count.total}", style="dim")
        return text.append(" !", style=MARK_STYLES["!"]) if count.failed else text

    def _projection(self, name: str, style: Style, p: Projection, room: int) -> Text:
        """A projection's state (and a sign if it is marked), name, shape (~ is dequantised), and number at the end. A
        long name loses its middle; if there is no room for all parts after a short name, the shape is left out
        first."""
        mark, number = self._look.mark(p), self._look.number_text(p)
        shape = f" {p.rows}x{p.cols}{'~' * bool(p.dequantisation)}" if p.rows else f" {p.problem}" if p.problem else ""
        end = f"{number:>{self._look.width + 1}}" if number else ""
        left = room - len("# ")
        if left - len(end) < LEAST_NAME:
            end = ""
        if left - len(end) - cell_len(shape) < LEAST_NAME:
            shape = ""
        text = Text(shortened(name, max(LEAST_NAME, left - len(end) - cell_len(shape))), style=style)
        text.pad_right(max(0, LEAST_NAME - text.cell_len))
        text.append(shape, style="dim")
        text.pad_right(max(0, left - len(end) - text.cell_len) if end else 0)
        sign = "+" if p.key in self._look.marked else " "
        behind = (end, "dim" if self._look.lens.is_greyed(p) else "")
        return Text.assemble((f"{mark}{sign}", MARK_STYLES.get(mark, "dim")), text, behind)

    def notify_style_update(self) -> None:
        # Tree would lay out and draw the whole screen again (44 kB at 120x40), but only colours have changed.
        ScrollView.notify_style_update(self)
        self._clear_line_cache()
        self.refresh()

    def scroll_to_line(self, line: int, animate: bool = True) -> None:  # noqa: ARG002 - Textual's signature
        # An animation draws the pane for 0.2 s, and each of its steps would be sent.
        super().scroll_to_line(line, animate=False)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[TreeItem]) -> None:
        self._fill(event.node)

    def action_close_node(self) -> None:
        """Close the node, or go to its parent if it is closed."""
        node = self.cursor_node
        if node is None:
            return
        if node.is_expanded and node.allow_expand and node is not self.root:
            node.collapse()
        elif node.parent is not None:
            self.move_cursor(node.parent)

    def action_open_node(self) -> None:
        """Open the node, or go to its first child if it is open."""
        node = self.cursor_node
        if node is None or not node.allow_expand:
            return
        if node.is_expanded and node.children:
            self.move_cursor(node.children[0])
        else:
            self._fill(node)
            node.expand()

    def _top(self, groups: Mapping[str, Sequence[Projection]]) -> Iterable[TreeItem]:
        for tower in dict.fromkeys(row.tower for row in self.grid.rows) if self.grid.counted else ():
            rows = [row for row in self.grid.rows if row.tower == tower]
            name = self.grid.named_all(tower)
            yield TreeItem(f"{name} ({len(rows)})", None, lambda rows=rows: map(self._layer, rows))  # type: ignore[misc]
        if self.grid.columns:
            yield TreeItem(f"roles ({len(self.grid.counted or self.grid.derived)})", None, self._roles)
        for name, members in groups.items():
            if members:
                yield TreeItem(f"{name} ({len(members)})", None, lambda members=members: map(_single, members))  # type: ignore[misc]

    def _roles(self) -> Iterable[TreeItem]:
        yield from map(self._role, self.grid.counted)
        for column in self.grid.derived:
            yield replace(self._role(column), name=f"{column.heading}, derived")

    def _layer(self, row: Row) -> TreeItem:
        def blocks() -> Iterable[TreeItem]:
            for block in dict.fromkeys(p.block for p in self.grid.row(row)):
                yield TreeItem(block, Selection(row, block=block), lambda block=block: self._cells(row, block))  # type: ignore[misc]

        return TreeItem(str(row.layer), Selection(row), blocks)

    def _cells(self, row: Row, block: str) -> Iterable[TreeItem]:
        for column in self.grid.counted:
            cell = self.grid.cells.get((row, column), ())
            if column.block != block or not cell:
                continue
            place = Selection(row, column)
            members = (lambda cell=cell, place=place: (_single(p, place) for p in cell)) if len(cell) > 1 else None
            yield TreeItem(column.role, place, members)

    def _role(self, column: Column) -> TreeItem:
        def layers() -> Iterable[TreeItem]:
            for row in self.grid.rows:
                if self.grid.cells.get((row, column)):
                    yield TreeItem(row.label, Selection(row, column))

        return TreeItem(column.heading, Selection(column=column), layers)

    def _add(self, parent: TreeNode[TreeItem], item: TreeItem) -> TreeNode[TreeItem]:
        return parent.add(Text(printable(item.name)), item, allow_expand=item.children is not None)

    def _fill(self, node: TreeNode[TreeItem]) -> None:
        if not node.children and node.data is not None and node.data.children is not None:
            for item in node.data.children():
                self._add(node, item)

    def _open(self, node: TreeNode[TreeItem]) -> None:
        self._fill(node)
        if not node.is_expanded:
            self._opened.append(node)
            node.expand()

    def _find(self, selection: Selection) -> TreeNode[TreeItem] | None:
        """The node of a layer, block or cell under the layers; of a role under the roles; of a tensor under other."""
        if selection.row is None:
            group = "roles" if selection.column else "other"
            whole = selection.column is None and selection.single is None
            return self.root if whole else self._child(self._child(self.root, group), selection)
        if selection.column in self.grid.derived:
            role = self._child(self._child(self.root, "roles"), Selection(column=selection.column))
            return self._child(role, selection)
        name = self.grid.named_all(selection.row.tower)
        path = [Selection(selection.row)]
        block = selection.column.block if selection.column else selection.block
        if block:
            path.append(Selection(selection.row, block=block))
        if selection.column:
            path.append(Selection(selection.row, selection.column))
        node = self._child(self.root, name)
        for step in path:
            node = self._child(node, step)
        if selection.single:  # an expert has a node; a head is shown at the projection that it is part of
            node = self._child(node, selection) or node
        return node

    def _child(self, node: TreeNode[TreeItem] | None, wanted: Selection | str) -> TreeNode[TreeItem] | None:
        if node is None:
            return None
        self._open(node)
        for child in node.children:
            if child.data is not None and wanted in (child.data.selection, child.data.name.rpartition(" (")[0]):
                return child
        return None


def _path(node: TreeNode[TreeItem] | None) -> list[TreeNode[TreeItem]]:
    """A node and those that contain it, innermost first."""
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return found


def _single(p: Projection, place: Selection = Selection()) -> TreeItem:  # noqa: B008 - frozen
    member = member_of(p) if place.row is not None else None
    whole = p.tensor or p.address.removeprefix("other.") if p.block == "other" else p.address
    name = member.words if member else whole
    return TreeItem(name, replace(place, single=p))
