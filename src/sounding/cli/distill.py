"""`sounding distill`: make a recognizer usable below full depth, from audio alone."""

from __future__ import annotations

import argparse
from typing import Any

from .process import quiet_transformers
from .support import add_replay, add_training, replay_option, training_options

INHERITED = ("backbone", "task", "language", "vocabulary", "heads", "skip")  # of a run


def add(commands: Any) -> None:
    """Add `sounding distill` and its options to the parser."""
    parser = commands.add_parser(
        "distill",
        help="teach a model's reduced depths by its full depth, from audio alone",
        description="Teach the reduced depths of a pretrained recognizer (or of a finished run)\n"
        "what its full depth answers. The model itself stays as it is: what is trained are small\n"
        "changes of its weights that act below full depth, and on clips that a Whisper hears at\n"
        "their own length. Needs audio and no labels: the training clips of a corpus, or all\n"
        "audio files below a directory. Goes on where it stopped when the command is given again.",
        epilog="""examples:
  sounding distill whisper-base --data recordings/ --out RUN
  sounding distill whisper-base --data recordings/ more/ --replay DIR:0.3 --out RUN --epochs 10
  sounding distill moonshine-base --data LibriSpeech/ --out RUN
  sounding distill runs/ctc --data recordings/ --out RUN          a run of `sounding train`

settings for --config and --set are the attributes of sounding.runs.config.TrainConfig.""",
    )
    parser.add_argument("model", help="whisper-base, a path or hub id of a recognizer, or a run")
    parser.add_argument("--data", required=True, nargs="+", help="directories of audio, or corpora")
    parser.add_argument("--out", required=True, help="directory of the run")
    add_replay(parser)
    add_training(parser)
    parser.add_argument("--config", help="YAML file of settings")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> None:
    """Distill, and say what comes next."""
    quiet_transformers()
    from ..data.unlabelled import unlabelled
    from ..methods import DISTILLED
    from ..runs.config import TrainConfig
    from ..training.loop import train

    changes = _start(arguments.model) | training_options(arguments)
    changes["method"] = DISTILLED
    if arguments.config is not None:
        config = TrainConfig.from_yaml(arguments.config, **changes)
    else:
        config = TrainConfig.from_values(changes)
    folder = unlabelled(arguments.data, replay_option(arguments.replay))
    run = train(config, folder, arguments.out)
    budget = max(1, 2 * run.dynamic.num_layers // 3)
    model = f"--run {arguments.out}"
    if run.task.token_by_token and run.dynamic.backbone.window(run.dynamic.base):
        model = f"--model {arguments.out}/model"  # a Whisper as it is, which cuts long audio
    print(f"{arguments.out}: distilled. Next: sounding transcribe FILE {model} --budget {budget}")


def _start(model: str) -> dict[str, Any]:
    """Return the settings that say what is distilled: a finished run, or a pretrained model."""
    from pathlib import Path

    from ..runs.config import TrainConfig
    from ..runs.run import CONFIG

    if not (Path(model) / "run.json").is_file():
        return {"backbone": model, "task": "decoder"}
    config = TrainConfig.from_yaml(Path(model) / CONFIG)
    return {"teacher": model, **{name: getattr(config, name) for name in INHERITED}}
