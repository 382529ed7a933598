"""Whisper as it is: its tokens at full depth, its errors and its speed at every budget.

  python benchmarks/whisper.py parity --data DATA/ljspeech_part --out runs/base
  python benchmarks/whisper.py sweep --data DATA/ljspeech_part DATA/speechocean762 --out runs/base
  python benchmarks/whisper.py sweep --model RUN/model --data DATA/speechocean762 --out runs/tuned
  python benchmarks/whisper.py sweep --data DATA/ljspeech_part --out /tmp/try --limit 3
  python benchmarks/whisper.py sweep --data DATA/ravdess --out runs/base --limit 200 \\
      --settings e6-d6-padded,e4-d6-short,e6-d3-short

parity  At full depth the wrapped model has to write the tokens of plain `transformers`, clip by
        clip: padded to the 30 s window, and at the clip's own length against a plain model whose
        window is cut to that length (and both to an even number of mel frames).
sweep   The word error rate on the test clips at each encoder budget, with and without padding to
        30 s, and at each budget of the decoder with a full encoder (without padding), or at those
        of --settings; zero-shot it is the first k layers. A whisper-base gets the parts that come
        with the package, unless --plain. Without padding a clip ends, as in `sounding transcribe`,
        in two seconds of silence, or half a second where the model has learned to do with it, and
        up to a whole second, so that some share a batch. Beside it the
        real-time factor, of features and text, one clip at a time: on a few clips, all settings in
        alternation (A B ..., then ... B A). `ratio` is the median of the paired ratios to full
        depth, padded. A model that has lost its layers may write nonsense of any length:
        `ratio_same_text` is the ratio where all write as many tokens as full depth.

Texts are compared by Whisper's own normalizer. DIR are AudioFolders with `text`, or RAVDESS, whose
file names say which of two sentences is spoken (all clips, of which 200 are drawn unless --limit
says otherwise). Results are in
OUT/parity-DATA.json and OUT/sweep-DATA.json. Killed, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

import sounding
from sounding.data.features import clip_seconds, load_audio
from sounding.data.folder import AudioFolder, Clip, load_folder, subset
from sounding.data.text import whisper_plain, word_errors
from sounding.files import sha256, write_json
from sounding.model.dynamic import DynamicModel
from sounding.model.io import CONFIG
from sounding.progress import progress
from sounding.runs.config import TrainConfig
from sounding.runs.run import provenance, trained_with
from sounding.statistics import ratio_bootstrap, speaker_groups
from sounding.transcribe.whisper import silence_behind
from sounding.weights import resolve
from sounding.weights.ready import names as ready_names
from sounding.weights.ready import parts_digest, wrap_ready

RATE, WINDOW_SECONDS = 16000, 30
RAVDESS = "ravdess"
K = TypeVar("K")
SAVE_EVERY = 25  # clips
BATCH = {True: 8, False: 16}  # clips, padded to 30 s or not


@dataclass(frozen=True)
class Setting:
    """One way to run the model: kept layers of encoder and decoder, padded to 30 s or not."""

    encoder: int
    decoder: int
    padded: bool

    @property
    def name(self) -> str:
        """Of its file."""
        return f"e{self.encoder}-d{self.decoder}-{'padded' if self.padded else 'short'}"


def main() -> int:
    """Run a command; the exit code is 2 after an error."""
    options = parse()
    return work(options, lambda path: options.command(Bench(options, path)))


def work(options: argparse.Namespace, command: Callable[[Path], None]) -> int:
    """Run a command on each folder of the options; return the exit code."""
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.inference_mode():
            for path in options.data:
                command(path)
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="parity | sweep")
    for name, command in (("parity", parity), ("sweep", sweep)):
        one = commands.add_parser(
            name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        one.set_defaults(command=command)
        one.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
        one.add_argument("--out", type=Path, required=True, help="for results, and to go on from")
        one.add_argument("--model", default="whisper-base", help="a name, or a directory")
        one.add_argument("--processor", help="a name, or a directory, where --model lacks it")
        one.add_argument("--limit", type=int, help="so many clips, for a try")
        one.add_argument("--max-new-tokens", type=int, default=128)
        one.add_argument("--threads", type=int, default=2)
        one.add_argument("--seed", type=int, default=0, help="of subsets and bootstrap")
        one.add_argument("--plain", action="store_true", help="without the parts that come ready")
        one.add_argument("--settings", help="as e4-d6-short,e6-d6-padded; of parity: the paddings")
    one.add_argument("--timed", type=int, default=8, help="clips to time; 0 for no timing")
    one.add_argument("--rounds", type=int, default=3, help="of timing, each there and back")
    return parser.parse_args()


class Bench:
    """The model, the test clips of one folder, and where its results are.

    Attributes:
        made_with: what has to be the same for a part that was done before to count.
    """

    def __init__(self, options: argparse.Namespace, path: Path) -> None:
        self.options = options
        folder = with_texts(path)
        self.data = folder.root.name
        self.clips = test_clips(folder, options)
        directory = Path(resolve(options.model))
        self.model = options.model
        self.directory = directory
        processor = Path(resolve(options.processor or options.model))
        if not (processor / "tokenizer.json").exists():
            raise ValueError(f"{processor} has no tokenizer.json: name one that has by --processor")
        self.extractor = WhisperFeatureExtractor.from_pretrained(processor)
        self.tokenizer = WhisperTokenizer.from_pretrained(processor)
        self.made_with = {
            "model": options.model,
            "model_sha256": sha256(directory / "model.safetensors"),
            "data": self.data,
            "data_digest": folder.digest,
            "split": "test",
            "clips": len(self.clips),
            "seed": options.seed,
            "max_new_tokens": options.max_new_tokens,
        }
        if self.model in ready_names():
            self.made_with["parts"] = None if options.plain else parts_digest(self.model)

    def plain(self) -> Any:
        """The model of `transformers` by itself."""
        model = WhisperForConditionalGeneration.from_pretrained(self.directory, dtype=torch.float32)
        return model.eval()

    def dynamic(self) -> DynamicModel:
        """The model to measure: as it was trained, or with the first k layers."""
        if (self.directory / CONFIG).exists():
            return sounding.load(self.directory, dtype=torch.float32)
        if self.options.plain:
            return sounding.wrap(self.plain(), "first")
        return wrap_ready(self.plain(), self.model)

    def features(self, clip: Clip, padded: bool) -> Tensor:
        """Shape: [1, bins, frames]."""
        return self.features_of(load_audio(clip, RATE, None), padded)

    def heard(self, audio: np.ndarray, padded: bool, silence: float) -> Tensor:
        """Features with the silence in which a short clip ends. Shape: as `features_of`."""
        tail = 0 if padded else whole_seconds(len(audio) / RATE, silence) * RATE - len(audio)
        return self.features_of(np.pad(audio, (0, tail)), padded)

    def features_of(self, audio: np.ndarray, padded: bool) -> Tensor:
        """Shape: audio [samples] -> [1, bins, frames]."""
        made = self.extractor(
            audio,
            sampling_rate=RATE,
            padding="max_length" if padded else False,
            truncation=padded,
            return_tensors="np",
        )
        return torch.from_numpy(np.asarray(made["input_features"][0], dtype=np.float32))[None]

    def asks(self, model: Any) -> dict[str, Any]:
        """What every text is generated with."""
        asks = {"max_new_tokens": self.options.max_new_tokens, "do_sample": False}
        if getattr(model.generation_config, "is_multilingual", False):
            asks |= {"language": "en", "task": "transcribe"}
        return asks

    def text(self, tokens: Tensor) -> str:
        """Shape: tokens [length]."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def done(self, name: str) -> dict[str, Any]:
        """What was saved of a part: by clip; empty where nothing was.

        Raises:
            ValueError: it was made with other settings, or is damaged.
        """
        path = self.path(name)
        if not path.exists():
            return {}
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            made_with, by_clip = saved["made_with"], dict(saved["by_clip"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it to measure again") from None
        if made_with != self.made_with:
            raise ValueError(f"{path} was made with other settings: give another --out")
        return by_clip

    def save(self, name: str, by_clip: dict[str, Any]) -> None:
        """Keep a part, done or not."""
        write_json(self.path(name), {"made_with": self.made_with, "by_clip": by_clip})

    def path(self, name: str) -> Path:
        """Of the file of a part."""
        return Path(self.options.out) / "parts" / f"{self.data}-{name}.json"

    def write(self, command: str, result: dict[str, Any]) -> None:
        """Write the result of a command."""
        path = Path(self.options.out) / f"{command}-{self.data}.json"
        made = {"command": [command, *sys.argv[2:]], "runs": trainings(self.directory.parent)}
        write_json(path, {**self.made_with, **made, **result, **provenance()})


def trainings(run: Path) -> list[dict[str, Any]]:
    """What made the model of a run, as `sounding sweep` has it; nothing where it is no run."""
    if not (run / "run.json").exists():
        return []
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return [trained_with(TrainConfig.from_yaml(run / "config.yaml"), info)]


def with_texts(path: Path) -> AudioFolder:
    """A folder; RAVDESS with the sentences that its file names say, all as test clips."""
    folder = load_folder(path)
    if folder.root.name != RAVDESS:
        return folder
    said = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
    clips = [
        replace(clip, target=said[clip.path.stem.split("-")[4]], split="test")
        for clip in folder.clips
    ]
    return replace(folder, task="text", clips=tuple(clips), labels=())


def asked(names: str | None) -> list[Setting]:
    """The settings of --settings.

    Raises:
        ValueError: a name that is none.
    """
    settings = []
    for name in (names or "").split(",") if names else ():
        found = re.fullmatch(r"e(\d+)-d(\d+)-(padded|short)", name.strip())
        if not found:
            raise ValueError(f"--settings takes names such as e4-d6-short; got {name!r}")
        settings.append(Setting(int(found[1]), int(found[2]), found[3] == "padded"))
    return settings


def test_clips(folder: AudioFolder, options: argparse.Namespace) -> list[Clip]:
    """The clips to measure.

    Raises:
        ValueError: a folder without texts, or without test clips.
    """
    if folder.task != "text":
        raise ValueError(f"{folder.root} has labels: a folder with a 'text' column is needed")
    limit = 200 if options.limit is None and folder.root.name == RAVDESS else options.limit
    if limit is not None and limit < len(folder.split("test")):
        return subset(folder, "test", limit, options.seed)
    return folder.split("test")


def each(
    bench: Bench, name: str, batches: Sequence[list[Clip]], save_every: int = SAVE_EVERY
) -> Iterator[tuple[list[Clip], dict[str, Any]]]:
    """The clips that a part still lacks, in their batches, with what it has by clip; saves it."""
    by_clip = bench.done(name)
    left = [[clip for clip in batch if clip.path.name not in by_clip] for batch in batches]
    if not any(left):
        return
    with progress(f"{bench.data} {name}", sum(map(len, batches))) as show:
        saved = len(by_clip)
        show(saved, "")
        for batch in filter(None, left):
            yield batch, by_clip
            show(len(by_clip), "")
            if len(by_clip) - saved >= save_every:
                bench.save(name, by_clip)
                saved = len(by_clip)
    bench.save(name, by_clip)


# --- parity ---------------------------------------------------------------------------------


def parity(bench: Bench) -> None:
    """Compare tokens, clip by clip, and write the differences."""
    plain, dynamic = bench.plain(), bench.dynamic()
    result = {}
    for case in (bench.options.settings or "padded,short").split(","):
        for (clip,), by_clip in each(bench, f"parity-{case}", single(bench.clips)):
            expected, got, apart = compare(bench, plain, dynamic, case == "padded", clip)
            by_clip[clip.path.name] = {
                "same": torch.equal(expected, got),
                "tokens": len(expected[0]),
                "encoder_difference": apart,
                "plain": bench.text(expected[0]),
                "wrapped": bench.text(got[0]),
            }
        by_clip = bench.done(f"parity-{case}")
        result[case] = summary = {
            "clips": len(by_clip),
            "same": sum(one["same"] for one in by_clip.values()),
            "tokens": sum(one["tokens"] for one in by_clip.values()),
            "largest_encoder_difference": max(
                one["encoder_difference"] for one in by_clip.values()
            ),
            "differences": {n: one for n, one in sorted(by_clip.items()) if not one["same"]},
        }
        print(
            f"{bench.data}, {case}: {summary['same']} of {summary['clips']} clips have the tokens "
            f"of plain transformers; largest difference of the encoder's output "
            f"{summary['largest_encoder_difference']:.2g}"
        )
        bench.write("parity", {"cases": result})


def compare(
    bench: Bench, plain: Any, dynamic: DynamicModel, padded: bool, clip: Clip
) -> tuple[Tensor, Tensor, float]:
    """Tokens of the plain and of the wrapped model, and how far apart their encoders are."""
    asks, features = bench.asks(plain), bench.features(clip, padded)
    features = features[..., : features.shape[-1] // 2 * 2]
    with nullcontext() if padded else windowed(plain, features.shape[-1] // 2):
        expected = plain.generate(features, **asks)
        states = plain.model.encoder(features)[0]
    got = dynamic.generate(features, **asks, budget=None, decoder_budget=None)
    ours = dynamic.layer_outputs({"input_features": features})[0][-1][0]
    return expected, got, float((states - ours).abs().max())


@contextmanager
def windowed(model: Any, frames: int) -> Iterator[None]:
    """Cut the window of a plain model to so many frames (after the convolutions) of a clip."""
    config, encoder, before = model.config, model.model.encoder, model.model.encoder.embed_positions
    encoder.embed_positions = nn.Embedding.from_pretrained(before.weight[:frames])
    config.max_source_positions = frames
    try:
        yield
    finally:
        encoder.embed_positions = before
        config.max_source_positions = len(before.weight)


# --- sweep ----------------------------------------------------------------------------------


def sweep(bench: Bench) -> None:
    """Errors, then speed, at every setting."""
    dynamic = bench.dynamic()
    layers, decoder_layers = dynamic.num_layers, len(dynamic.decoder_stack or ())
    settings = [
        Setting(k, decoder_layers, padded) for padded in (True, False) for k in range(layers, 0, -1)
    ]
    settings += [Setting(layers, d, False) for d in range(decoder_layers - 1, 0, -1)]
    settings = asked(bench.options.settings) or settings
    rows = []
    for setting in settings:
        rows.append(asdict(setting) | errors(bench, dynamic, setting))
        bench.write("sweep", {"normalization": "whisper", "rows": rows})
    if bench.options.timed:
        for row, speed in zip(rows, speeds(bench, dynamic, settings), strict=True):
            row |= speed
        bench.write("sweep", {"normalization": "whisper", "rows": rows})
    Console().print(table(rows, f"{bench.model} on {bench.data}, {len(bench.clips)} clips"))


def errors(bench: Bench, dynamic: DynamicModel, setting: Setting) -> dict[str, Any]:
    """The word error rate at one setting, its interval over speakers or clips as in a sweep."""
    options = bench.options
    name = f"sweep-{setting.name}"
    padded = setting.padded
    silence = silence_behind(dynamic)
    for clips, by_clip in each(bench, name, in_batches(bench.clips, padded, silence)):
        heard = [bench.heard(load_audio(clip, RATE, None), padded, silence) for clip in clips]
        features = torch.cat(heard)
        for clip, tokens in zip(clips, generate(bench, dynamic, setting, features), strict=True):
            count = int((tokens != dynamic.model.generation_config.pad_token_id).sum())
            by_clip[clip.path.name] = {"text": bench.text(tokens), "tokens": count}
    by_clip = bench.done(name)
    tokens = [by_clip[clip.path.name]["tokens"] for clip in bench.clips]
    return {
        **word_error_rate(bench, {name: one["text"] for name, one in by_clip.items()}),
        "tokens": float(np.mean(tokens)),
        "at_limit": sum(count >= options.max_new_tokens for count in tokens),
    }


def word_error_rate(bench: Bench, texts: dict[str, str]) -> dict[str, Any]:
    """The errors of a text for each clip, by the name of its file."""
    said = [whisper_plain(clip.target) for clip in bench.clips]
    heard = [whisper_plain(texts[clip.path.name]) for clip in bench.clips]
    errors = np.array([word_errors(a, b) for a, b in zip(said, heard, strict=True)])
    words = np.array([len(text.split()) for text in said])
    groups = speaker_groups([clip.speaker for clip in bench.clips])
    rate = ratio_bootstrap(errors, words, groups=groups, seed=bench.options.seed)
    return {
        "wer": rate.mean,
        "low": rate.low,
        "high": rate.high,
        "errors": int(errors.sum()),
        "words": int(words.sum()),
    }


def generate(
    bench: Bench, dynamic: DynamicModel, setting: Setting, features: Tensor, tokens: int = 0
) -> Tensor:
    """Generate at one setting, `tokens` of them if it is given. Shape: -> [batch, length]."""
    asks = bench.asks(dynamic.model)
    if tokens:
        asks |= {"min_new_tokens": tokens, "max_new_tokens": tokens}
    return dynamic.generate(
        features, **asks, budget=setting.encoder, decoder_budget=setting.decoder
    )


def speeds(
    bench: Bench, dynamic: DynamicModel, settings: Sequence[Setting]
) -> list[dict[str, Any]]:
    """The real-time factor at each setting, and its ratios to that of the first.

    Shape: times [clips, rounds, settings], in seconds.
    """
    options = bench.options
    name = f"times-{options.threads}-threads-{options.rounds}-rounds"
    timed = spread(bench.clips, options.timed)
    for (clip,), by_clip in each(bench, name, single(timed), save_every=1):
        by_clip[clip.path.name] = time_clip(bench, dynamic, settings, clip)
    by_clip = bench.done(name)
    chosen = [by_clip[clip.path.name] for clip in timed]
    free = np.array([one["free"] for one in chosen])
    same = np.array([one["same_text"] for one in chosen])
    rtf = np.median(free, axis=1).sum(0) / sum(one["seconds"] for one in chosen)
    return [
        {
            "rtf": float(rtf[index]),
            "ratio": median_ratio(free, index, options.seed),
            "ratio_same_text": median_ratio(same, index, options.seed),
            "timed_clips": len(timed),
        }
        for index in range(len(settings))
    ]


def by_length(clips: Sequence[Clip]) -> list[Clip]:
    """The shortest first: those of one batch need about as many tokens."""
    return sorted(clips, key=lambda clip: (clip_seconds(clip), clip.path.name))


def spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """At most so many clips, from the shortest to the longest."""
    ordered = by_length(clips)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[place] for place in places.round().astype(int)]


def in_batches(clips: Sequence[Clip], padded: bool, silence: float) -> list[list[Clip]]:
    """Clips of one length together: Whisper's decoder knows no padding mask."""
    alike = groupby(
        by_length(clips), lambda clip: 0 if padded else whole_seconds(clip_seconds(clip), silence)
    )
    size = BATCH[padded]
    return [
        same[start : start + size]
        for same in (list(group) for _, group in alike)
        for start in range(0, len(same), size)
    ]


def single(clips: Sequence[Clip]) -> list[list[Clip]]:
    """One at a time."""
    return [[clip] for clip in clips]


def whole_seconds(seconds: float, silence: float) -> int:
    """The length of a clip with the silence behind it; at most the window."""
    return min(WINDOW_SECONDS, math.ceil(seconds + silence))


def time_clip(
    bench: Bench, dynamic: DynamicModel, settings: Sequence[Setting], clip: Clip
) -> dict[str, Any]:
    """Seconds of features and text of one clip, for each round and setting."""
    audio = load_audio(clip, RATE, None)
    silence = silence_behind(dynamic)
    full = bench.heard(audio, settings[0].padded, silence)
    tokens = max(1, generate(bench, dynamic, settings[0], full).shape[1])
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    for index, setting in enumerate(settings):
        for kind, length in (("free", 0), ("same_text", tokens)):
            runs[kind, index] = lambda s=setting, n=length: generate(
                bench, dynamic, s, bench.heard(audio, s.padded, silence), n
            )
    runs["same_text", 0]()  # warm
    times: dict[str, list[list[float]]] = {"free": [], "same_text": []}
    for _ in range(bench.options.rounds):
        spent = in_turn(runs)
        for kind, rounds in times.items():
            rounds.append([spent[kind, index] for index in range(len(settings))])
    return {"seconds": len(audio) / RATE, "tokens": tokens, **times}


def in_turn(runs: dict[K, Callable[[], Any]]) -> dict[K, float]:
    """Seconds of each of some runs, in one order and then in the other: the mean of both."""
    gc.collect()
    spent = dict.fromkeys(runs, 0.0)
    for name in (*runs, *reversed(runs)):
        start = perf_counter()
        runs[name]()
        spent[name] += (perf_counter() - start) / 2
    return spent


def median_ratio(times: np.ndarray, index: int, seed: int) -> list[float]:
    """Median ratio of a setting to the first, with its 95 % bootstrap interval over clips.

    Shape: times [clips, rounds, settings].
    """
    ratios = times[..., index] / times[..., 0]
    rng = np.random.default_rng(seed)
    drawn = ratios[rng.integers(len(ratios), size=(2000, len(ratios)))]
    low, high = np.quantile(np.median(drawn, axis=(1, 2)), [0.025, 0.975])
    return [float(np.median(ratios)), float(low), float(high)]


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The results for people."""
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False)
    headings = ("encoder", "decoder", "to 30 s", "WER", "95 %", "tokens", "at limit")
    for heading in (*headings, "RTF", "ratio", "95 %", "same text"):
        shown.add_column(heading, justify="right")
    for row in rows:
        ratio = row.get("ratio", [float("nan")] * 3)
        shown.add_row(
            str(row["encoder"]),
            str(row["decoder"]),
            "yes" if row["padded"] else "no",
            f"{row['wer']:.1%}",
            f"{row['low']:.1%}-{row['high']:.1%}",
            f"{row['tokens']:.1f}",
            str(row["at_limit"]),
            f"{row.get('rtf', float('nan')):.3f}",
            f"{ratio[0]:.2f}",
            f"{ratio[1]:.2f}-{ratio[2]:.2f}",
            f"{row.get('ratio_same_text', [float('nan')])[0]:.2f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
