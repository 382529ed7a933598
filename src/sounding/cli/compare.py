"""`sounding compare`: train and measure every method."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .process import quiet_transformers
from .support import add_device, training_options


def add(commands: Any) -> None:
    """Add `sounding compare` and its options to the parser."""
    parser = commands.add_parser(
        "compare",
        help="every method on every data set, with a verdict: does the input matter?",
        description="Train and measure every method with several seeds, and write a report with\n"
        "the verdict. Goes on where it stopped; what is measured is not done again.",
        epilog="""examples:
  sounding compare --data DIR --out STUDY
  sounding compare --methods input,static,early-exit --seeds 0,1 --data DIR DIR2 --out STUDY
  sounding compare --config study.yaml --data DIR --out STUDY

study.yaml may hold settings (of every run), start (a training that all go on from), data
(settings by data set), variants, seeds, ablation_seeds, snr_db, ceilings and draws: the
attributes of sounding.study.compare.StudyConfig.""",
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders of clips")
    parser.add_argument("--out", required=True, help="directory of the study")
    parser.add_argument(
        "--methods",
        help="all, all+ablations, or names with commas between them (all, or those of --config)",
    )
    parser.add_argument("--seeds", help="with commas between them (0,1,2)")
    parser.add_argument("--config", help="YAML file of the study")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of every run"
    )
    add_device(parser, None)
    parser.add_argument("--drop-models", action="store_true", help="keep measurements only")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Train and measure what is not done yet, and print the verdict."""
    quiet_transformers()
    from dataclasses import replace

    from ..study.compare import StudyConfig, compare
    from ..study.variants import bases, variants

    given = arguments.config
    study = StudyConfig() if given is None else StudyConfig.from_yaml(given)
    study = replace(study, settings={**study.settings, **training_options(arguments)})
    if arguments.methods:
        named = {"all": tuple(bases()), "all+ablations": tuple(variants())}
        chosen = named.get(arguments.methods) or tuple(arguments.methods.split(","))
        study = replace(study, variants=chosen)
    if arguments.seeds:
        try:
            seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
        except ValueError:
            raise UsageError(f"--seeds takes numbers, not {arguments.seeds!r}") from None
        study = replace(study, seeds=seeds)
    out = Path(arguments.out)
    for line in compare(study, arguments.data, out, keep_models=not arguments.drop_models):
        print(line)
    print(f"written: {out / 'report.html'}, verdict.json, table.md")
