"""Writes a sweep to files: JSON, CSV, plots, a model card."""

from __future__ import annotations

from pathlib import Path

from ..core.macs import count_macs
from ..files import write_json, write_text
from ..training.runs import Run
from .card import model_card
from .plots import plot_accuracy, plot_layers
from .sweep import Sweep
from .table import markdown, to_csv


def write_sweep(
    sweep: Sweep,
    *,
    json: Path | str | None = None,
    csv: Path | str | None = None,
    table: Path | str | None = None,
    plots: Path | str | None = None,
    card: Path | str | None = None,
    run: Run | None = None,
    notes: str = "",
) -> None:
    """Write what is asked for.

    Args:
        json, csv, card: files.
        table: a Markdown file.
        plots: a directory.
        run: of the card.
        notes: on the data, for the card.
    """
    if json is not None:
        write_json(json, sweep.to_json())
    if csv is not None:
        write_text(csv, to_csv(sweep))
    if table is not None:
        write_text(table, markdown(sweep))
    if plots is not None:
        plot_accuracy(sweep, Path(plots) / "accuracy.png")
        if any(name.startswith("input/") for name in sweep.masks):
            plot_layers(sweep, Path(plots) / "layers.png")
    if card is not None and run is not None:
        write_text(card, model_card(run, sweep, count_macs(run.dynamic), notes=notes))
