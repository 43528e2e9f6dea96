"""The model as a tree: layers and their blocks, roles over all layers, and what is no projection.

Children are made when a node is opened: 1 ms for a model of 49,000 nodes that takes 1 s at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.scroll_view import ScrollView
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from rankscope.engine.errors import printable
from rankscope.engine.spectrum import Projection

from ..data.grid import Column, Grid, Row, Selection
from ..drawing.cells import Look
from ..settings import keys

MARK_STYLES = {"#": "green", "*": "yellow bold", "!": "red bold", "?": "red"}


@dataclass(frozen=True, slots=True)
class Item:
    """A node: its name, what it selects (None: nothing), and how its children come about."""

    name: str
    selection: Selection | None = None
    children: Callable[[], Iterable[Item]] | None = None


class ProjectionTree(Tree[Item], inherit_bindings=False):
    """`look` tells the state and rank of a projection, and how much of a group is done."""

    BINDINGS: ClassVar[list[BindingType]] = keys.TREE
    ICON_NODE = "> "
    ICON_NODE_EXPANDED = "v "

    def __init__(self, name: str, look: Look, **kwargs: str) -> None:
        super().__init__(Text(printable(name)), Item(name, Selection()), **kwargs)  # type: ignore[arg-type]
        self._look = look
        self._opened: list[TreeNode[Item]] = []
        self.grid = Grid((), (), {})
        self.guide_depth = 2

    def set_model(self, grid: Grid, groups: Mapping[str, Sequence[Projection]]) -> None:
        """Show these layers, and below them groups of projections: tensors that are none, what one model lacks."""
        self.grid = grid
        self._opened = []
        self.root.remove_children()
        for item in self._top(groups):
            self._add(self.root, item)
        self.root.expand()
        if self.root.children:
            self._fill(self.root.children[0])
            self.root.children[0].expand()

    def follow(self, selection: Selection) -> None:
        """Move the cursor to a selection, opening what is on the way, without telling anyone.

        What an earlier selection opened is closed again: else a walk through the layers opens them all.
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
            # Asking for the last line lays the opened nodes out: before that they have no line to go to.
            if node is not None and self.last_line >= 0 and node is not self.cursor_node:
                self.move_cursor(node)

    def update_marks(self) -> None:
        """States changed: draw the nodes that are in view again."""
        for line in range(self.scroll_offset.y, min(self.last_line + 1, self.scroll_offset.y + self.size.height)):
            node = self.get_node_at_line(line)
            if node is not None:
                node.refresh()

    def render_label(self, node: TreeNode[Item], base_style: Style, style: Style) -> Text:
        item = node.data
        icon = "" if not node.allow_expand else self.ICON_NODE_EXPANDED if node.is_expanded else self.ICON_NODE
        text = Text(icon, style=base_style) + Text(printable(item.name) if item else "", style=style)
        if item is None or item.selection is None:
            return text
        if node.allow_expand:
            return self._group(text, item.selection)
        projections = item.selection.projections(self.grid)
        return self._projection(text, projections[0], len(_path(node))) if projections else text

    def _group(self, text: Text, selection: Selection) -> Text:
        """With how many of its projections are done, and whether some have failed."""
        count = self._look.count(selection)
        if count.done and count.done == count.total:
            text.append(" #", style=MARK_STYLES["#"])
        elif count.done:
            text.append(f"  {count.done} of {count.total}", style="dim")
        return text.append(" !", style=MARK_STYLES["!"]) if count.failed else text

    def _projection(self, text: Text, p: Projection, depth: int) -> Text:
        """With its state before it (and a sign where it is marked), its shape and its rank behind; ~ is dequantised."""
        mark = self._look.mark(p)
        rank = self._look.rank(p)
        shape = f"{p.rows}x{p.cols}{'~' * bool(p.dequantisation)}" if p.rows else p.problem or ""
        # Of a long name the middle gives way: shape and rank stay in view.
        room = self.size.width - self.guide_depth * depth - len(shape) - 10
        text = _shortened(text, max(8, room))
        text.pad_right(max(0, 8 - text.cell_len))
        sign = "+" if p.key in self._look.marked else " "
        text = Text.assemble((f"{mark}{sign}", MARK_STYLES.get(mark, "dim")), text)
        return text.append(f" {shape:<11}", style="dim").append("" if rank is None else f"{rank:>6}")

    def notify_style_update(self) -> None:
        # Tree lays everything out again, and with it the whole screen is drawn (44 kB at 120x40); only colours change.
        ScrollView.notify_style_update(self)
        self._clear_line_cache()
        self.refresh()

    def scroll_to_line(self, line: int, animate: bool = True) -> None:  # noqa: ARG002 - Textual's own signature
        # An animation draws the pane for 0.2 s, and each of its steps is sent.
        super().scroll_to_line(line, animate=False)

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[Item]) -> None:
        self._fill(event.node)

    def action_close_node(self) -> None:
        """Close the node, or go to its parent where it is closed."""
        node = self.cursor_node
        if node is None:
            return
        if node.is_expanded and node.allow_expand and node is not self.root:
            node.collapse()
        elif node.parent is not None:
            self.move_cursor(node.parent)

    def action_open_node(self) -> None:
        """Open the node, or go to its first child where it is open."""
        node = self.cursor_node
        if node is None or not node.allow_expand:
            return
        if node.is_expanded and node.children:
            self.move_cursor(node.children[0])
        else:
            self._fill(node)
            node.expand()

    def _top(self, groups: Mapping[str, Sequence[Projection]]) -> Iterable[Item]:
        for tower in dict.fromkeys(row.tower for row in self.grid.rows):
            rows = [row for row in self.grid.rows if row.tower == tower]
            name = f"{tower} layers" if tower else "layers"
            yield Item(f"{name} ({len(rows)})", None, lambda rows=rows: map(self._layer, rows))  # type: ignore[misc]
        if self.grid.columns:
            yield Item(f"roles ({len(self.grid.columns)})", None, lambda: map(self._role, self.grid.columns))
        for name, members in groups.items():
            if members:
                yield Item(f"{name} ({len(members)})", None, lambda members=members: map(_single, members))  # type: ignore[misc]

    def _layer(self, row: Row) -> Item:
        def blocks() -> Iterable[Item]:
            for block in dict.fromkeys(p.block for p in self.grid.row(row)):
                yield Item(block, Selection(row, block=block), lambda block=block: self._cells(row, block))  # type: ignore[misc]

        return Item(str(row.layer), Selection(row), blocks)

    def _cells(self, row: Row, block: str) -> Iterable[Item]:
        for column in self.grid.columns:
            cell = self.grid.cells.get((row, column), ())
            if column.block != block or not cell:
                continue
            place = Selection(row, column)
            experts = (lambda cell=cell, place=place: (_single(p, place) for p in cell)) if len(cell) > 1 else None
            yield Item(column.role, place, experts)

    def _role(self, column: Column) -> Item:
        def layers() -> Iterable[Item]:
            for row in self.grid.rows:
                if self.grid.cells.get((row, column)):
                    yield Item(row.label, Selection(row, column))

        return Item(column.heading, Selection(column=column), layers)

    def _add(self, parent: TreeNode[Item], item: Item) -> TreeNode[Item]:
        return parent.add(Text(printable(item.name)), item, allow_expand=item.children is not None)

    def _fill(self, node: TreeNode[Item]) -> None:
        if not node.children and node.data is not None and node.data.children is not None:
            for item in node.data.children():
                self._add(node, item)

    def _open(self, node: TreeNode[Item]) -> None:
        self._fill(node)
        if not node.is_expanded:
            self._opened.append(node)
            node.expand()

    def _find(self, selection: Selection) -> TreeNode[Item] | None:
        """The node of a layer, block or cell under the layers; of a role under the roles; of a tensor under other."""
        if selection.row is None:
            group = "roles" if selection.column else "other"
            whole = selection.column is None and selection.single is None
            return self.root if whole else self._child(self._child(self.root, group), selection)
        name = f"{selection.row.tower} layers" if selection.row.tower else "layers"
        path = [Selection(selection.row)]
        block = selection.column.block if selection.column else selection.block
        if block:
            path.append(Selection(selection.row, block=block))
        if selection.column:
            path.append(Selection(selection.row, selection.column))
        if selection.single:
            path.append(selection)
        node = self._child(self.root, name)
        for step in path:
            node = self._child(node, step)
        return node

    def _child(self, node: TreeNode[Item] | None, wanted: Selection | str) -> TreeNode[Item] | None:
        if node is None:
            return None
        self._open(node)
        for child in node.children:
            if child.data is not None and wanted in (child.data.selection, child.data.name.rpartition(" (")[0]):
                return child
        return None


def _shortened(text: Text, most: int) -> Text:
    """At most so many cells, the middle left out."""
    if text.cell_len <= most:
        return text
    head = most // 2
    return text[:head] + Text("\u2026") + text[len(text) - (most - head - 1) :]


def _path(node: TreeNode[Item] | None) -> list[TreeNode[Item]]:
    """A node and what it stands in."""
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return found


def _single(p: Projection, place: Selection = Selection()) -> Item:  # noqa: B008 - frozen
    expert = p.expert is not None and place.row is not None
    name = f"expert {p.expert}" if expert else p.tensor if p.block == "other" else p.address
    return Item(name, replace(place, single=p))
