"""The command line: `sounding train | sweep | run | export | transcribe | compare | ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .support import (
    Failure,
    Parser,
    answers_or_why,
    command_process,
    each_answer,
    standard_input,
)

if TYPE_CHECKING:
    from ..runtime import Answer

EPILOG = """examples:
  sounding demo                                    the whole of it on synthetic commands
  sounding train --backbone whisper-base --data DIR --out RUN
  sounding recipes                                 benchmarks that one option trains on
  sounding sweep RUN --data DIR --json sweep.json  accuracy and cost at every budget
  sounding run RUN clip.wav --budget 3             classify with 3 layers
  sounding export RUN --out model.onnx             for a device without torch
  sounding run model.onnx clip.wav --budget 3      there
  sounding inspect RUN                             layers, parameters, MACs by part
  sounding compare --data DIR --out STUDY          every method, and whether the input matters
  sounding transcribe talk.mp3 --format txt,srt    long audio as text, layers chosen by piece

DIR is a folder with metadata.csv: file_name, label, optionally split and speaker; a corpus as it
was unpacked; or the id of a data set on the hub (docs/recipes.md).
`sounding COMMAND --help` says more.
"""


CALIBRATION = 24  # clips
RECIPE = "a name of `sounding recipes`, or a YAML file like one"
CODES = {"Interrupted": 130, "EngineError": 2}  # by name: their modules load torch and more


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0; 1 where some files failed; 2 for an error, of all files too; 130 after an interrupt.
    """
    arguments = _parser().parse_args(argv)
    with command_process():
        return _run_command(arguments)


def _run_command(arguments: argparse.Namespace) -> int:
    try:
        if arguments.command not in (_run, _calibrate):  # which do without torch
            _quiet()
        code = arguments.command(arguments) or 0
        if sys.stdout is not None:  # closed
            sys.stdout.flush()  # a full disk is told here, and not by the interpreter at its end
        return code
    except KeyboardInterrupt:
        print("sounding: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nobody is left to tell
        return 141
    except ModuleNotFoundError as error:
        from .. import explain_missing

        print(f"sounding: {explain_missing(error)}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"sounding: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        code = CODES.get(type(error).__name__)
        if code is None:
            raise
        print(f"sounding: {error}", file=sys.stderr)
        return code


def _quiet() -> None:
    """Our own progress in place of the bars and reports of transformers."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _parser() -> argparse.ArgumentParser:
    from .. import __version__

    parser = Parser("sounding", "Pretrained speech models that choose their own depth.", EPILOG)
    parser.add_argument("--version", action="version", version=f"sounding {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for add in (
        _add_train, _add_sweep, _add_run, _add_export, _add_calibrate, _add_inspect, _add_compare,
        _add_report, _add_recipes, _add_transcribe, _add_demo,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_train(commands: Any) -> None:
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

settings for --config and --set are the attributes of sounding.runs.config.TrainConfig.""",
    )
    parser.add_argument("--data", required=True, help="folder of clips, a corpus or a hub id")
    parser.add_argument("--out", required=True, help="directory of the run")
    parser.add_argument(
        "--backbone", help="whisper-base, moonshine-base, whisper-tiny.en, a path or a hub id"
    )
    parser.add_argument(
        "--method", help="input (default), static, random, dld, i3d, early-exit, full"
    )
    parser.add_argument("--epochs", help="passes over the training clips")
    parser.add_argument("--batch-size", help="clips a step")
    parser.add_argument("--seed", help="of everything random")
    parser.add_argument("--max-seconds", help="use only the start of longer clips")
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--recipe", help=RECIPE)
    base.add_argument("--config", help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; may repeat"
    )
    parser.set_defaults(command=_train)


def _train(arguments: argparse.Namespace) -> None:
    from ..data.corpora import open_corpus
    from ..model.macs import summary
    from ..recipes import load_recipe
    from ..runs.config import TrainConfig
    from ..training.loop import train

    named = ("backbone", "method", "epochs", "batch_size", "seed", "max_seconds")
    changes = {n: getattr(arguments, n) for n in named if getattr(arguments, n) is not None}
    changes |= _settings(arguments.set)
    recipe = load_recipe(arguments.recipe) if arguments.recipe else None
    if recipe:
        config = recipe.config(changes)
    elif arguments.config:
        config = TrainConfig.from_yaml(arguments.config, **changes)
    else:
        config = TrainConfig.from_values(changes)
    folder = recipe.open(arguments.data) if recipe else open_corpus(arguments.data)
    run = train(config, folder, arguments.out)
    print(summary(run.dynamic))
    again = f"--data {arguments.data}" + (f" --recipe {arguments.recipe}" if recipe else "")
    print(f"{arguments.out}: trained. Next: sounding sweep {arguments.out} {again}")


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser(
        "recipes",
        help="benchmarks, each with a backbone and its settings",
        description="List the recipes and what is measured of them, or show one to read or copy.",
        epilog="""examples:
  sounding recipes
  sounding recipes esc50-ast > mine.yaml
  sounding train --recipe mine.yaml --data ESC-50-master --out RUN""",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one")
    parser.set_defaults(command=_recipes)


def _recipes(arguments: argparse.Namespace) -> None:
    from ..recipes import recipe_table, recipe_text

    print(recipe_text(arguments.name) if arguments.name else recipe_table(), end="")


def _settings(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of --set."""
    found = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {setting!r}")
        found[name.strip()] = value.strip()
    return found


def _add_sweep(commands: Any) -> None:
    parser = commands.add_parser(
        "sweep",
        help="measure every budget",
        description="Measure accuracy, MACs and latency at every budget on the test clips.",
        epilog="""examples:
  sounding sweep RUN --data DIR --json sweep.json
  sounding sweep runs/full runs/random runs/early-exit runs/input --data DIR --plots plots/""",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs of different methods")
    parser.add_argument("--data", required=True, help="folder of clips, a corpus or a hub id")
    parser.add_argument("--recipe", help=f"{RECIPE}: how to read --data")
    parser.add_argument("--split", default="test", help="validation or test (default)")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--csv", help="write the table to this file")
    parser.add_argument("--table", help="write the table to this file, as Markdown")
    parser.add_argument("--plots", help="write accuracy.png and layers.png to this directory")
    parser.add_argument("--card", help="write a model card of the last RUN to this file")
    parser.add_argument("--rounds", type=int, default=15, help="timings a row (15); 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of random masks and timing order")
    _add_beam(parser)
    parser.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from ..data.corpora import open_corpus
    from ..evaluation.report import check_outputs, write_sweep
    from ..evaluation.sweep import sweep
    from ..evaluation.table import rich_table
    from ..recipes import load_recipe
    from ..runs.run import load_run

    files = (arguments.json, arguments.csv, arguments.table, arguments.card)
    check_outputs(files=files, plots=arguments.plots)
    read = load_recipe(arguments.recipe).open if arguments.recipe else open_corpus
    folder = read(arguments.data)
    runs = [load_run(directory) for directory in arguments.runs]
    for run in runs:
        run.beam = _beam(arguments, run)
    result = sweep(
        runs, folder, split=arguments.split, rounds=arguments.rounds, seed=arguments.seed
    )
    try:
        write_sweep(
            result,
            json=arguments.json,
            csv=arguments.csv,
            table=arguments.table,
            plots=arguments.plots,
            card=arguments.card,
            run=runs[-1],
        )
    finally:  # last, since the reader of our output may be gone
        Console().print(rich_table(result))


def _add_run(commands: Any) -> None:
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
        help="kept layers: 3, 0.5, 50%% or mean:3; of an exported model also 40ms, rtf:0.1 or "
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
    _add_beam(parser)
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    import json

    from ..runtime import is_exported, show

    if not arguments.clips and not arguments.watch:
        raise ValueError("give audio files, or --watch DIR")
    on_device = arguments.governor or arguments.watch or arguments.stream is not None
    if on_device and not is_exported(arguments.run):
        raise ValueError("--governor, --watch and --stream are for exported models")
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
    budget = _budget(arguments.budget)

    def answer(audio: Any) -> Answer:
        return model.run(audio, budget, max_seconds=arguments.max_seconds)

    yield from each_answer(model, answer, clips, arguments.stream)


def _clips(arguments: argparse.Namespace) -> Iterator[Path | str]:
    """Those that are given, then those that come from now on."""
    from ..data.audio import SUFFIXES
    from ..runtime.watch import watch

    coming = watch(arguments.watch, sorted(SUFFIXES)) if arguments.watch else iter(())
    return chain(arguments.clips, coming)


def _governed_answers(
    model: Any, clips: Iterator[Path | str], arguments: argparse.Namespace
) -> Iterator[Answer | Failure]:
    from ..runtime.governor import Governed, plot_log, write_log
    from ..runtime.profile import Limit

    target = Limit.of(arguments.governor)
    if target is None or target.kind != "ms" or arguments.budget:
        raise ValueError("--governor takes a latency, such as 50ms, and no --budget beside it")
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
    _quiet()
    from ..evaluation.classify import classify
    from ..runs.run import load_run

    run = load_run(arguments.run)
    run.beam = _beam(arguments, run)
    budget, seconds = _budget(arguments.budget), arguments.max_seconds
    if seconds is None:
        seconds = run.config.max_seconds
    for clip in arguments.clips:
        yield from answers_or_why(clip, classify(run, [clip], budget, max_seconds=seconds))


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="one ONNX file that still chooses its layers, for a device without torch",
        description="Write a run as ONNX: one file whose inputs are features and budget, and in\n"
        "which a layer that is not chosen is not executed. It is held against PyTorch at every\n"
        "budget before it is put in place.",
        epilog="""examples:
  sounding export RUN --out model.onnx
  sounding export RUN --out model-int8.onnx --int8
  sounding export RUN --out model-int8.onnx --int8 --calibrate-data DIR
  sounding export RUN --out three.onnx --layers 0,1,3     always these layers: a plain graph
  sounding export RUN --out model/ --split                loads only the layers that it needs""",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--out", required=True, help="a file .onnx, or a directory for --split")
    parser.add_argument("--int8", action="store_true", help="layers in 8-bit integers")
    parser.add_argument(
        "--calibrate-data", metavar="DIR", help="clips to measure static ranges on, for --int8"
    )
    parser.add_argument("--split", action="store_true", help="a directory of parts")
    fixed = parser.add_mutually_exclusive_group()
    fixed.add_argument("--mask", metavar="110100", help="always run these layers")
    fixed.add_argument("--layers", metavar="0,1,3", help="the same, by their indexes")
    parser.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    from ..data.folder import load_folder
    from ..export import export
    from ..runs.run import load_run

    run = load_run(arguments.run)
    mask = _mask(arguments.mask, arguments.layers, run.dynamic.num_layers)
    calibration = None
    if arguments.calibrate_data is not None:
        clips = load_folder(arguments.calibrate_data).split("train")
        some = clips[:: max(1, len(clips) // CALIBRATION)][:CALIBRATION]
        calibration = run.read(some, "calibration")
    exported = export(
        run,
        arguments.out,
        split=arguments.split,
        mask=mask,
        int8=arguments.int8,
        calibration=calibration,
    )
    for line in exported.lines():
        print(line)


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="measure an exported model on this device, for budgets in time",
        description="Time an exported model at several lengths, for every number of layers, and\n"
        "write the profile of this device beside it. Then 40ms and rtf:0.1 are budgets, and\n"
        "--governor works. Leave the device alone meanwhile.",
        epilog="""examples:
  sounding calibrate model.onnx
  sounding calibrate model.onnx --threads 1,2,4 --seconds 1,3,10""",
    )
    parser.add_argument("model", metavar="MODEL", help="what `sounding export` wrote")
    parser.add_argument("--threads", help="with commas between them (all cores)")
    parser.add_argument("--seconds", help="lengths of the inputs, with commas between them")
    parser.add_argument("--rounds", type=int, default=30, help="timings of each (30)")
    parser.add_argument("--out", help="the profile (MODEL.profile.json)")
    parser.set_defaults(command=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    from ..runtime import Profile, load, profile_path
    from ..runtime.profile import LENGTHS, device

    threads = _numbers(arguments.threads, "--threads", int) or [os.cpu_count() or 1]
    lengths = _numbers(arguments.seconds, "--seconds", float) or list(LENGTHS)
    tables = {}
    for count in threads:
        model = load(arguments.model, threads=count)

        def show(done: int, total: int, count: int = count) -> None:
            end = "\n" if done == total else ""
            print(f"\r{count} threads: round {done} of {total}", end=end, file=sys.stderr)

        tables[count] = model.calibrate(lengths, arguments.rounds, show)
    profile = Profile(device(), model.digest(), model.meta.layers, tables)
    out = arguments.out or profile_path(arguments.model)
    profile.save(out)
    for count, table in tables.items():
        print(f"{count} threads, milliseconds (median) by length and kept layers")
        print("seconds " + "".join(f"{k:>8}" for k in range(1, profile.layers + 1)))
        for seconds, row in zip(table.seconds, table.median, strict=True):
            print(f"{seconds:7g} " + "".join(f"{value:8.1f}" for value in row))
    print(f"written: {out}")


def _numbers(text: str | None, name: str, kind: type) -> list[Any]:
    """Numbers above 0 with commas between them."""
    try:
        numbers = [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(not number > 0 for number in numbers):
        raise ValueError(f"{name} takes numbers above 0 with commas between them, not {text!r}")
    return numbers


def _mask(digits: str | None, indexes: str | None, layers: int) -> list[bool] | None:
    """Of --mask or --layers."""
    if digits is not None:
        if set(digits) - {"0", "1"} or len(digits) != layers:
            raise ValueError(f"--mask takes {layers} digits 0 or 1, one a layer, not {digits!r}")
        return [digit == "1" for digit in digits]
    if indexes is None:
        return None
    try:
        chosen = [int(index) for index in indexes.split(",")]
    except ValueError:
        chosen = [-1]
    if not set(chosen) <= set(range(layers)):
        raise ValueError(f"--layers takes indexes from 0 to {layers - 1}, not {indexes!r}")
    return [index in chosen for index in range(layers)]


def _add_beam(parser: Any) -> None:
    parser.add_argument("--beam", type=int, help="texts kept by a beam search (recognition by CTC)")
    parser.add_argument("--lm", help="ARPA language model of words, for the beam search")


def _beam(arguments: argparse.Namespace, run: Any) -> Any:
    """The beam search that was asked for; None is greedy."""
    if arguments.beam is None and arguments.lm is None:
        return None
    if run.tokenizer is None or run.config.recognition != "ctc":
        raise ValueError("--beam and --lm are for runs that recognize texts by CTC")
    from ..evaluation.beam import BeamDecoder

    beam = 25 if arguments.beam is None else arguments.beam
    return BeamDecoder(run.labels, beam, lm=arguments.lm)


def _budget(text: str | None) -> Any:
    """A budget from the command line: 3 is layers, 0.5 and 50% are shares."""
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="layers, parameters, MACs by part",
        description="Show a run: layers, parameters and MACs by part, the selector's share.",
        epilog="examples:\n  sounding inspect RUN\n  sounding inspect RUN --seconds 5",
    )
    parser.add_argument("run", metavar="RUN", help="a run, or a directory of save_pretrained")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the clip counted (1)")
    parser.set_defaults(command=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from ..model.dynamic import load
    from ..model.macs import summary

    directory = Path(arguments.run)
    inner = directory / "model"
    print(summary(load(inner if inner.is_dir() else directory), arguments.seconds))


def _add_compare(commands: Any) -> None:
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
    parser.add_argument("--drop-models", action="store_true", help="keep measurements only")
    parser.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from ..study.compare import BASES, VARIANTS, StudyConfig, compare

    study = StudyConfig.from_yaml(arguments.config) if arguments.config else StudyConfig()
    study = replace(study, settings={**study.settings, **_settings(arguments.set)})
    if arguments.methods:
        named = {"all": tuple(BASES), "all+ablations": tuple(VARIANTS)}
        variants = named.get(arguments.methods) or tuple(arguments.methods.split(","))
        study = replace(study, variants=variants)
    if arguments.seeds:
        try:
            seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
        except ValueError:
            raise ValueError(f"--seeds takes numbers, not {arguments.seeds!r}") from None
        study = replace(study, seeds=seeds)
    out = Path(arguments.out)
    for line in compare(study, arguments.data, out, keep_models=not arguments.drop_models):
        print(line)
    print(f"written: {out / 'report.html'}, verdict.json, table.md")


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="one HTML page and a verdict out of measured runs",
        description="Read what `compare` measured and write one HTML page that needs no network.",
        epilog="""examples:
  sounding report STUDY
  sounding report STUDY/ravdess STUDY2 --out report.html --verdict verdict.json""",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, or directories of them")
    parser.add_argument("--out", default="report.html", help="the page (report.html)")
    parser.add_argument("--verdict", help="write all comparisons to this JSON file")
    parser.add_argument("--table", help="write the table to this file, as Markdown")
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    from ..study.html import write_report

    paths = [Path(run) for run in arguments.runs]
    out, verdict, table = arguments.out, arguments.verdict, arguments.table
    for line in write_report(
        paths,
        Path(out),
        verdict=Path(verdict) if verdict else None,
        table=Path(table) if table else None,
    ):
        print(line)
    print(f"written: {out}")


def _add_transcribe(commands: Any) -> None:
    parser = commands.add_parser(
        "transcribe",
        help="long audio as text, with layers chosen for each piece",
        description="Cut audio at silences, recognize each piece with the layers that the budget\n"
        "allows, and write text, subtitles or JSON with time stamps. Killed, it goes on where it\n"
        "stopped; what is finished is not done again. A file that cannot be used is an error of\n"
        "its own, told at the end, and the others are transcribed; the exit code is 1 then.",
        epilog="""examples:
  sounding transcribe talk.mp3                             writes talk.txt
  sounding transcribe talk.mp3 --format txt,srt,json --language en
  sounding transcribe recordings/ --out texts/ --budget 4  every audio file below recordings/
  sounding transcribe - --format srt < talk.flac > talk.srt
  sounding transcribe recordings/ --workers 8 --cluster auto""",
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE|DIR|-", help="audio, directories of it, or - for stdin"
    )
    parser.add_argument(
        "--model", help="a Whisper as it is: whisper-base (default), a path or a hub id"
    )
    parser.add_argument("--run", metavar="RUN", help="a run trained on texts, in place of --model")
    parser.add_argument("--budget", help="kept encoder layers: 3, 0.5 or 50%%; default: full")
    parser.add_argument(
        "--format", default="txt", help="txt (default), srt, vtt, json, with commas between them"
    )
    parser.add_argument("--out", help="directory of the texts; default: beside the audio")
    parser.add_argument(
        "--language", help="of the speech, as en or English; default: guessed for each piece"
    )
    parser.add_argument(
        "--pad", action="store_true", help="pad each piece to 30 s, as Whisper was trained"
    )
    parser.add_argument("--max-seconds", type=float, default=28, help="longest piece (28)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace texts of other settings, or of others"
    )
    _add_beam(parser)
    parser.add_argument(
        "--workers", type=int, help="so many processes at once, by Ray (2 on a --cluster)"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster for the workers: auto")
    parser.set_defaults(command=_transcribe)


def _transcribe(arguments: argparse.Namespace) -> int:
    from ..transcribe.formats import format_names
    from ..transcribe.job import Job, transcribe, transcribe_stream
    from ..transcribe.sources import find_sources
    from ..transcribe.vad import silero

    silero()  # its absence is said before the model is loaded

    stdin = "-" in arguments.inputs
    many = arguments.workers is not None or arguments.cluster is not None
    formats = format_names(arguments.format)
    if stdin and (len(arguments.inputs) > 1 or arguments.out or len(formats) > 1 or many):
        raise ValueError("- is one input and writes one format to standard output, without --out")
    stream = standard_input() if stdin else None
    sources = [] if stdin else find_sources(arguments.inputs, arguments.out)
    settings = {
        "budget": _budget(arguments.budget),
        "formats": formats,
        "max_seconds": arguments.max_seconds,
        "overwrite": arguments.overwrite,
    }
    job = Job(_recognizer(arguments), **settings)  # what is wrong is said here, not by a worker
    if stream is not None:
        print(transcribe_stream(stream, job), end="")
        return 0
    failures: list[str] = []
    try:
        if many:
            from ..transcribe.cluster import transcribe_on_cluster

            transcribe_on_cluster(
                sources,
                partial(_recognizer, arguments),
                settings,
                workers=2 if arguments.workers is None else arguments.workers,
                address=arguments.cluster,
                failed=failures.append,
            )
        else:
            transcribe(sources, job, failures.append)
    finally:  # Ctrl-C too
        for failure in failures:
            print(f"sounding: {failure}", file=sys.stderr)
    done = len(sources) - len(failures)
    print(f"{done} of {len(sources)} files are transcribed")
    return 1 if failures else 0


def _recognizer(arguments: argparse.Namespace) -> Any:
    """That of --model or --run."""
    if arguments.run is None:
        from ..transcribe.whisper import WhisperRecognizer

        if arguments.beam is not None or arguments.lm is not None:
            raise ValueError("--beam and --lm are for a --run that recognizes by CTC")
        model = arguments.model or "whisper-base"
        return WhisperRecognizer.load(model, language=arguments.language, pad=arguments.pad)
    if arguments.model or arguments.language or arguments.pad:
        raise ValueError("--model, --language and --pad do not go with --run")
    from ..files import sha256
    from ..runs.run import load_run
    from ..transcribe.trained import RunRecognizer

    run = load_run(arguments.run)
    run.beam = _beam(arguments, run)
    decoding: Any = "greedy"
    if run.beam is not None:
        words = None if arguments.lm is None else sha256(arguments.lm)[:16]
        decoding = {"beam": arguments.beam, "words": words}
    return RunRecognizer(run, arguments.run, decoding)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="the whole of it on synthetic spoken commands",
        description="Make spoken commands by a text-to-speech engine, train four methods on\n"
        "Whisper-base, sweep every budget, write table, plots and model card.\n"
        "Goes on where it stopped.",
        epilog="examples:\n  sounding demo\n  sounding demo --backbone whisper-tiny.en --out tiny/",
    )
    parser.add_argument("--out", default="demo", help="directory of the results (demo)")
    parser.add_argument("--backbone", default="whisper-base", help="whisper-base")
    parser.add_argument("--seed", type=int, default=0, help="of data and training")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, to see that it runs")
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from ..demo import demo

    demo(Path(arguments.out), arguments.backbone, arguments.seed, quick=arguments.quick)
