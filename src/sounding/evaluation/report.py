"""Writes a sweep to files: JSON, CSV, plots, a model card."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from ..files import write_json, write_text
from ..model.macs import count_macs
from ..registry import METHODS
from ..runs.run import Run
from .card import model_card
from .plots import need_matplotlib, plot_accuracy, plot_layers
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
    """Write what is asked for, the plots last: where one fails, all the rest is there.

    Args:
        json, csv, card: files.
        table: a Markdown file.
        plots: a directory.
        run: of the card.
        notes: on the data, for the card.

    Raises:
        UsageError: a plot that cannot be drawn.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if json is not None:
        write_json(json, sweep.to_json())
    if csv is not None:
        write_text(csv, to_csv(sweep))
    if table is not None:
        write_text(table, markdown(sweep))
    if card is not None and run is not None:
        write_text(card, model_card(run, sweep, count_macs(run.dynamic), notes=notes))
    if plots is not None:
        _plot(sweep, Path(plots))


def _plot(sweep: Sweep, directory: Path) -> None:
    drawn = {"accuracy.png": plot_accuracy}
    if any(name.split("/")[0] in METHODS for name in sweep.masks):
        drawn["layers.png"] = plot_layers
    failed = []
    for name, plot in drawn.items():
        try:
            plot(sweep, directory / name)
        except (ModuleNotFoundError, OSError):
            raise
        except Exception as error:  # of matplotlib, whatever it is: no figure is worth the sweep
            failed.append(f"{directory / name} cannot be drawn ({error})")
    if failed:
        raise UsageError(f"{'; '.join(failed)}: all else is written")


def check_outputs(
    *, files: Iterable[Path | str | None] = (), plots: Path | str | None = None
) -> None:
    """Refuse what cannot be written before hours of work, not after it.

    Args:
        files: to be written; None is none.
        plots: a directory for plots.

    Raises:
        UsageError: a directory in the place of a file, a file in that of a directory, or no
            permission; the text names it.
        ModuleNotFoundError: plots without matplotlib.
    """
    for file in files:
        if file is not None:
            if Path(file).is_dir():
                raise UsageError(f"{file} is a directory: give the name of a file")
            _check_directory(Path(file).absolute().parent)
    if plots is not None:
        need_matplotlib()
        _check_directory(Path(plots).absolute())


def _check_directory(directory: Path) -> None:
    """Refuse a directory that cannot be written to, or made."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file: {directory} cannot be a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} cannot be written to: choose another place")
