"""A sweep as a table: for the terminal, for Markdown, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from ..methods.base import Look
from ..methods.looks import MEAN, looks
from ..tasks import metric_title
from .shown import one_line
from .sweep import Row, Sweep


def _columns(sweep: Sweep) -> tuple[str, ...]:
    metric = metric_title(sweep.rows[0].metric)
    return ("method", "k", metric, "95 % CI", "MACs", "of full", "latency", "of full")


def sorted_rows(sweep: Sweep) -> list[Row]:
    """Sort the rows by method, then from few layers to many."""
    order = list(looks())
    return sorted(sweep.rows, key=lambda row: (order.index(row.method), row.kept_layers))


def _cells(row: Row, known: Mapping[str, Look]) -> tuple[str, ...]:
    return (
        known[row.method].label,
        f"{row.executed_layers:.2f}" if row.method.endswith(MEAN) else str(row.kept_layers),
        f"{100 * row.value:.1f} %",
        f"{100 * row.ci_low:.1f}-{100 * row.ci_high:.1f}",
        f"{row.macs / 1e6:,.0f} M",
        f"{100 * row.macs_share:.0f} %",
        "" if row.latency_ms is None else f"{row.latency_ms:.1f} ms",
        "" if row.latency_share is None else f"{100 * row.latency_share:.0f} %",
    )


def rich_table(sweep: Sweep) -> Table:
    """Return the table for a terminal."""
    header = sweep.header
    data = header["data"]
    title = f"{escape(one_line(data['name']))}, {header['clips']} {data['split']} clips; "
    title += "k: kept layers"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in _columns(sweep):
        justify: Literal["left", "right"] = "left" if column == "method" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    before, known = None, looks()
    for row in sorted_rows(sweep):
        if before not in (None, row.method):
            table.add_section()
        before = row.method
        table.add_row(*_cells(row, known))
    return table


def markdown(sweep: Sweep) -> str:
    """Return the table for a README or a model card."""
    columns, known = _columns(sweep), looks()
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(_cells(row, known)) + " |" for row in sorted_rows(sweep)]
    return "\n".join(lines) + "\n"


def to_csv(sweep: Sweep) -> str:
    """Return one line a row; `layer_use` is numbers with spaces between them."""
    file = io.StringIO()
    names = list(Row.__dataclass_fields__)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in sorted_rows(sweep):
        writer.writerow(_flat(getattr(row, name)) for name in names)
    return file.getvalue()


def _flat(value: object) -> object:
    if isinstance(value, list):
        return " ".join(f"{number:.4g}" for number in value)
    return value
