"""Tables for terminals of any width: where the columns do not fit, the rows are listed one below the other."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

# What a column of words keeps at least, and one of names that are cut off: their ends differ. What stands between two columns.
WORDS, NAMES, BETWEEN = 12, 24, 3


class FittingTable(Table):
    """A table whose figures are never cut short: where they have no room, every row becomes its name and a list of them.

    Columns that fold, or have a `min_width`, hold words and may be narrower than these; the first of them names the row.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wanted = sum(map(_least, self.columns)) + BETWEEN * (len(self.columns) - 1)
        if wanted <= options.max_width:
            for column in self.columns:
                # rich shortens all columns alike once those that wrap are narrow: names give way first.
                if column.no_wrap and _holds_words(column):
                    column.max_width = _least(column) + options.max_width - wanted
            yield from super().__rich_console__(console, options)  # type: ignore[misc]
        else:
            yield Group(*map(self._listed, range(self.row_count)))

    def _listed(self, row: int) -> RenderableType:
        name = next((column for column in self.columns if _holds_words(column)), self.columns[0])
        figures = [
            Text.assemble((f"{_text(column.header).plain} ".lstrip(), "dim"), cell)
            for column in self.columns
            if column is not name and (cell := _text(column._cells[row]))
        ]
        return Group(_text(name._cells[row]), Padding(Text(", ").join(figures), (0, 0, 0, 2)))


def _holds_words(column: Column) -> bool:
    return column.overflow == "fold" or column.min_width is not None


def _least(column: Column) -> int:
    """The width below which a column would lose figures, or all of its words."""
    widest = max(cell_len(line) for cell in (column.header, *column._cells) for line in _text(cell).plain.split("\n"))
    if not _holds_words(column):
        return widest
    return min(widest, NAMES if column.no_wrap else WORDS)


def _text(cell: RenderableType) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(str(cell))
