"""`sounding train`: fine-tune a backbone with a layer selector."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from ..registry import METHODS
from .process import quiet_transformers
from .support import RECIPE, add_replay, add_training, replay_option, training_options


def add(commands: Any) -> None:
    """Add `sounding train` and its options to the parser."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a backbone with a layer selector",
        description="Fine-tune a backbone with a layer selector, or by a baseline method.\n"
        "Goes on where it stopped when the same command is given again.",
        epilog="""examples:
  sounding train --backbone whisper-base --data DIR --out RUN
  sounding train --backbone facebook/wav2vec2-base --data DIR --out RUN --epochs 10
  sounding train --config train.yaml --data DIR --out RUN --set lr_encoder=3e-5
  sounding train --recipe esc50-ast --data ESC-50-master --out RUN --epochs 5
  sounding train --texts-by whisper-base --data recordings/ more/ --out RUN

settings for --config and --set are the attributes of sounding.runs.config.TrainConfig.""",
    )
    parser.add_argument(
        "--data", required=True, nargs="+", help="folder of clips, a corpus or a hub id"
    )
    parser.add_argument("--out", required=True, help="directory of the run")
    parser.add_argument(
        "--backbone", help="whisper-base, moonshine-base, whisper-tiny.en, a path or a hub id"
    )
    known = ", ".join(METHODS)
    parser.add_argument("--method", help=f"{known}; default: {METHODS.default}")
    parser.add_argument(
        "--texts-by",
        metavar="MODEL",
        help="a recognizer that writes the texts: then --data are directories of audio, or corpora",
    )
    add_replay(parser)
    add_training(parser)
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--recipe", help=RECIPE)
    base.add_argument("--config", help="YAML file of settings")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Train, and print what the model costs and what comes next."""
    quiet_transformers()
    from pathlib import Path

    from ..data.corpora import open_corpus
    from ..data.unlabelled import unlabelled
    from ..model.macs import summary
    from ..recipes import load_recipe
    from ..runs.config import TrainConfig
    from ..training.distributed import processes
    from ..training.loop import train
    from ..training.texts import with_texts

    changes = training_options(arguments, "backbone", "method")
    recipe = None if arguments.recipe is None else load_recipe(arguments.recipe)
    if recipe:
        config = recipe.config(changes)
    elif arguments.config is not None:
        config = TrainConfig.from_yaml(arguments.config, **changes)
    else:
        config = TrainConfig.from_values(changes)
    first, *others = arguments.data
    if arguments.texts_by is None and (others or arguments.replay):
        raise UsageError("--replay and more than one folder of --data go with --texts-by alone")
    with processes(config.device) as group:
        if arguments.texts_by is not None:
            folder = unlabelled(arguments.data, replay_option(arguments.replay))
            out = Path(arguments.out)
            folder = with_texts(arguments.texts_by, folder, config, out, group)
        else:
            folder = recipe.open(first) if recipe else open_corpus(first)
        run = train(config, folder, arguments.out)
    print(summary(run.dynamic))
    again = "--data " + ("DIR" if arguments.texts_by is not None else first)
    again += f" --recipe {arguments.recipe}" if recipe else ""
    print(f"{arguments.out}: trained. Next: sounding sweep {arguments.out} {again}")
