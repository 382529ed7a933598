"""`sounding run`: answer to clips at a budget."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .answers import Failure, answers_or_why, each_answer
from .process import quiet_transformers
from .support import add_beam, add_device, beam_option, budget_option

if TYPE_CHECKING:
    from ..runtime import Answer


def add(commands: Any) -> None:
    """Add `sounding run` and its options to the parser."""
    parser = commands.add_parser(
        "run",
        help="answer to clips at a budget: a class, or a text",
        description="Answer to clips, and show the layers that ran. Exported models need no torch."
        "\nA clip that cannot be used is an error of its own, and the others are answered: the exit"
        "\ncode is 1 then, and 2 where there was no answer at all.",
        epilog="""examples:
  sounding run RUN clip.wav --budget 3
  sounding run RUN *.wav --budget 50% --json
  sounding run model.onnx clip.wav --budget mean:3
  sounding run model.onnx clip.wav --budget 40ms      after sounding calibrate model.onnx
  sounding run model.onnx --governor 50ms --watch inbox/ --log steps.csv --plot steps.png
  sounding run model.onnx mic --stream 1 --governor 50ms""",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or what `sounding export` wrote")
    parser.add_argument("clips", nargs="*", metavar="CLIP", help="audio files")
    parser.add_argument(
        "--budget",
        help="kept layers: 3, 50%% or mean:3; of an exported model also 40ms, rtf:0.1 or "
        "1.5gmac; default: full",
    )
    parser.add_argument("--threads", type=int, help="of an exported model; default: all cores")
    parser.add_argument(
        "--governor", metavar="50ms", help="keep this latency while the load changes (exported)"
    )
    parser.add_argument(
        "--watch",
        metavar="DIR",
        help="answer to each new or changed file once it is whole, until Ctrl-C",
    )
    parser.add_argument(
        "--stream",
        metavar="SECONDS",
        type=float,
        help="answer to each window of so many seconds; CLIP may be mic, the microphone",
    )
    parser.add_argument("--floor", type=int, default=1, help="of the governor: least layers (1)")
    parser.add_argument("--log", help="of the governor: latency, layers and load, as CSV")
    parser.add_argument("--plot", help="of the governor: the same as a picture")
    parser.add_argument("--max-seconds", type=float, help="use only the start of longer clips")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line, with file and error for a clip that cannot be used",
    )
    add_device(parser)
    add_beam(parser)
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Print an answer to each clip; return 1 where some had none, and 2 where all had none."""
    import json

    from ..runtime import is_exported, show

    if not arguments.clips and not arguments.watch:
        raise UsageError("give audio files, or --watch DIR")
    on_device = arguments.governor or arguments.watch or arguments.stream is not None
    if on_device and not is_exported(arguments.run):
        raise UsageError("--governor, --watch and --stream are for exported models")
    answers = _exported_answers if is_exported(arguments.run) else _trained_answers
    answered = failed = 0
    for said in answers(arguments):
        if arguments.json:
            print(json.dumps(said.to_json(), allow_nan=False), flush=True)
        if isinstance(said, Failure):
            failed += 1
            print(f"sounding: {said.error}", file=sys.stderr, flush=True)
        else:
            answered += 1
            if not arguments.json:
                print(show(said), flush=True)
    return (1 if answered else 2) if failed else 0


def _exported_answers(arguments: argparse.Namespace) -> Iterator[Answer | Failure]:
    from ..runtime import load

    clips = _clips(arguments)  # what comes while the model is loaded counts too
    model = load(arguments.run, threads=arguments.threads)
    if arguments.governor:
        yield from _governed_answers(model, clips, arguments)
        return
    budget = budget_option(arguments.budget)

    def answer(audio: Any) -> Answer:
        return model.run(audio, budget, max_seconds=arguments.max_seconds)

    yield from each_answer(model, answer, clips, arguments.stream)


def _clips(arguments: argparse.Namespace) -> Iterator[Path | str]:
    """Yield the clips that are given, then those that come from now on."""
    from ..data.audio import SUFFIXES
    from ..runtime.watch import watch

    coming = watch(arguments.watch, sorted(SUFFIXES)) if arguments.watch else iter(())
    return chain(arguments.clips, coming)


def _governed_answers(
    model: Any, clips: Iterator[Path | str], arguments: argparse.Namespace
) -> Iterator[Answer | Failure]:
    from ..runtime.governor import Governed, plot_log, write_log

    wanted = "--governor takes a latency, such as 50ms, and no --budget beside it"
    try:
        target = budget_option(arguments.governor)
    except UsageError:
        raise UsageError(wanted) from None
    if target.kind != "ms" or arguments.budget:
        raise UsageError(wanted)
    governed = Governed(model, target.value, floor=arguments.floor)

    def answer(audio: Any) -> Answer:
        return governed.run(audio, max_seconds=arguments.max_seconds)

    try:
        yield from each_answer(model, answer, clips, arguments.stream)
    finally:  # Ctrl-C too
        if arguments.log:
            write_log(list(governed.steps), arguments.log)
        if arguments.plot and governed.steps:
            plot_log(list(governed.steps), arguments.plot)


def _trained_answers(arguments: argparse.Namespace) -> Iterator[Answer | Failure]:
    quiet_transformers()
    from ..evaluation.classify import classify
    from ..runs.run import load_run

    run = load_run(arguments.run, arguments.device)
    run.beam = beam_option(arguments, run)
    budget, seconds = budget_option(arguments.budget), arguments.max_seconds
    if seconds is None:
        seconds = run.config.max_seconds
    for clip in arguments.clips:
        yield from answers_or_why(clip, classify(run, [clip], budget, max_seconds=seconds))
