"""`sounding transcribe`: write long audio as text."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from ..errors import UsageError
from .process import quiet_transformers, standard_input
from .support import add_beam, add_device, beam_option, budget_option


def add(commands: Any) -> None:
    """Add `sounding transcribe` and its options to the parser."""
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
    parser.add_argument("--budget", help="kept encoder layers: 3 or 50%%; default: full")
    parser.add_argument(
        "--decoder-budget", help="kept decoder layers of --model: 3 or 50%%; default: all"
    )
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
    add_device(parser)
    add_beam(parser)
    parser.add_argument(
        "--workers", type=int, help="so many processes at once, by Ray (2 on a --cluster)"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster for the workers: auto")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Write the texts, and tell the files without one; return 1 where there are some."""
    quiet_transformers()
    from ..transcribe.formats import format_names
    from ..transcribe.job import Job, transcribe, transcribe_stream
    from ..transcribe.sources import find_sources
    from ..transcribe.vad import silero

    silero()  # its absence is said before the model is loaded

    stdin = "-" in arguments.inputs
    many = arguments.workers is not None or arguments.cluster is not None
    formats = format_names(arguments.format)
    if stdin and (len(arguments.inputs) > 1 or arguments.out or len(formats) > 1 or many):
        raise UsageError("- is one input and writes one format to standard output, without --out")
    stream = standard_input() if stdin else None
    sources = [] if stdin else find_sources(arguments.inputs, arguments.out)
    settings = {
        "budget": budget_option(arguments.budget),
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
    """Return the recognizer of --model or --run."""
    if arguments.run is None:
        from ..transcribe.whisper import WhisperRecognizer

        if arguments.beam is not None or arguments.lm is not None:
            raise UsageError("--beam and --lm are for a --run that recognizes by CTC")
        model = arguments.model or "whisper-base"
        return WhisperRecognizer.load(
            model,
            language=arguments.language,
            pad=arguments.pad,
            decoder_budget=arguments.decoder_budget,
            device=arguments.device,
        )
    given = ("model", "language", "pad", "decoder_budget")
    if wrong := [name for name in given if getattr(arguments, name)]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(f"{options} do not go with --run")
    from ..files import sha256
    from ..runs.run import load_run
    from ..transcribe.trained import RunRecognizer

    run = load_run(arguments.run, arguments.device)
    run.beam = beam_option(arguments, run)
    decoding: Any = "greedy"
    if run.beam is not None:
        words = None if arguments.lm is None else sha256(arguments.lm)[:16]
        decoding = {"beam": arguments.beam, "words": words}
    return RunRecognizer(run, arguments.run, decoding)
