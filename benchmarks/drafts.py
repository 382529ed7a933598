"""What drafts save in greedy recognition by Whisper at full depth, in one thread.

  python benchmarks/drafts.py --data DATA/ljspeech_part --limit 30 --out drafts.json
  python benchmarks/drafts.py --data DATA/ljspeech_part --draft layers:2 MODULE:FUNCTION --pad

Each way of generating takes each clip in turn, in an order that is turned around in every second
round; the tokens are compared each time. A ratio is the time with drafts over that of `generate`
without, of the same clips, with the 95 % interval over clips (bootstrap): of the whole answer, with
the encoder, by processor time and by wall time. Features are made before. A draft is

  none               an empty text: what our loop saves, or costs, by itself
  text:20            what greedy generation says itself, with 20 % of the words replaced by others
                     of the data set, by chance: the bound for a draft of this quality that is free
  layers:2           the first 2 layers of the decoder, whatever they have learned
  MODULE:FUNCTION    what FUNCTION(recognizer) of a module of yours returns: all that `draft` takes

Last, each draft runs once with clocks in it, to tell where the time goes.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sounding.data.audio import read_audio
from sounding.data.folder import load_folder
from sounding.files import write_json
from sounding.model import drafts
from sounding.model.drafters import LayerDraft
from sounding.runs.run import provenance
from sounding.statistics import ratio_bootstrap
from sounding.transcribe.whisper import WhisperRecognizer

GREEDY = "greedy"
CLOCKS = {"processor": process_time, "wall": perf_counter}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def main() -> None:
    """Measure, print a table and write the JSON."""
    options = parse()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    recognizer = WhisperRecognizer.load(options.model, language=options.language, pad=options.pad)
    runs = Runs(recognizer, options)
    clips = load_folder(options.data).clips
    words = [word for clip in clips for word in clip.target.split()]
    count = min(options.limit or len(clips), len(clips))
    chosen = [clips[index * len(clips) // count] for index in range(count)]
    for index, clip in enumerate(track(chosen, "clips", console=Console(stderr=True))):
        wave = read_audio(clip.path, rate=recognizer.sampling_rate)
        runs.clip(clip.path.name, wave, words, np.random.default_rng([options.seed, index]))
    found = {name: runs.summary(name) for name in options.draft}
    Console().print(table(found, runs))
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in vars(options).items()}
    settings["data"] = options.data.name
    if options.out:
        about = {"settings": settings, "clips": count, "greedy_seconds": runs.greedy_seconds()}
        write_json(options.out, {**about, "drafts": found, **provenance()})


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with metadata.csv")
    parser.add_argument("--model", default="whisper-base")
    parser.add_argument("--language", default="en", help="of the speech")
    parser.add_argument("--pad", action="store_true", help="clips to 30 s")
    parser.add_argument("--budget", help="of the encoder")
    parser.add_argument(
        "--draft", nargs="+", default=["none", "text:0", "text:10", "text:20", "layers:2"]
    )
    parser.add_argument("--limit", type=int, help="clips, evenly spaced")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the words that are replaced")
    parser.add_argument("--out", help="where to write the results")
    return parser.parse_args()


class Runs:
    """What was measured: for each way the seconds, passes and kept tokens of each clip."""

    def __init__(self, recognizer: WhisperRecognizer, options: argparse.Namespace) -> None:
        self.recognizer, self.options = recognizer, options
        self.fixed = {name: draft_of(name, recognizer) for name in options.draft}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.accepted: dict[str, list[list[int]]] = {name: [] for name in options.draft}
        self.different: dict[str, list[str]] = {name: [] for name in options.draft}
        self.parts: dict[str, dict[str, float]] = {name: {} for name in options.draft}
        self.tokens: list[int] = []

    def clip(self, name: str, wave: Any, words: list[str], rng: np.random.Generator) -> None:
        """Run all ways on a clip."""
        generate = self._generate(wave)
        truth = generate(None)["sequences"]
        prompt = self._prompt(truth)
        self.tokens.append(truth.shape[1] - prompt)
        ways: dict[str, Any] = {GREEDY: None}
        for way, draft in self.fixed.items():
            ways[way] = self._text(truth[0], draft, words, rng) if type(draft) is float else draft
        totals = {(way, kind): 0.0 for way in ways for kind in CLOCKS}
        for turn in range(self.options.rounds):
            for way in ways if turn % 2 == 0 else [*ways][::-1]:
                starts = {kind: clock() for kind, clock in CLOCKS.items()}
                out = generate(ways[way])
                for kind, clock in CLOCKS.items():
                    totals[way, kind] += clock() - starts[kind]
                if not torch.equal(out["sequences"], truth):
                    self.different[way] += [name]
        for key, value in totals.items():
            self.seconds.setdefault(key, []).append(value / self.options.rounds)
        for way in self.fixed:
            with clocks(self.recognizer, self.parts[way]):
                out = generate(ways[way])
            self.accepted[way].append(out["accepted"][0].tolist())

    def _generate(self, wave: Any) -> Callable[[Any], Any]:
        recognizer = self.recognizer
        features = recognizer._features(wave, recognizer.pad)
        limit = 24 + 12 * len(wave) // recognizer.sampling_rate  # as `transcribe` has it
        limit = min(int(recognizer.dynamic.config.max_target_positions) // 2, limit)
        settings = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True}
        settings |= {**recognizer._spoken, "max_new_tokens": limit, "budget": self.options.budget}
        return lambda draft: recognizer.dynamic.generate(features, **settings, draft=draft)

    def _prompt(self, sequences: torch.Tensor) -> int:
        """The number of tokens before the text, which are all special ones."""
        special = set(self.recognizer.tokenizer.all_special_ids)
        tokens = sequences[0].tolist()
        return next((i for i, one in enumerate(tokens) if one not in special), len(tokens))

    def _text(
        self, tokens: torch.Tensor, share: float, words: list[str], rng: np.random.Generator
    ) -> Callable[[Any], list[int]]:
        """A drafter that reads these tokens, with a share of their words replaced."""
        tokenizer = self.recognizer.tokenizer
        said = tokenizer.decode(tokens, skip_special_tokens=True).split()
        other = [str(rng.choice(words)) if rng.random() < share else word for word in said]
        text = tokenizer.encode(" " + " ".join(other), add_special_tokens=False)
        return lambda states: text

    def summary(self, way: str) -> dict[str, Any]:
        """Of a draft: ratios, passes, kept tokens, and where the time went."""
        ratios = {}
        for kind in CLOCKS:
            pair = np.array(self.seconds[way, kind]), np.array(self.seconds[GREEDY, kind])
            ratios[kind] = dict(zip(("ratio", "low", "high"), ratio_bootstrap(*pair), strict=True))
        passes = [len(one) for one in self.accepted[way]]
        a_pass = [sum(one) / len(one) for one in self.accepted[way]]
        spent = sum(self.parts[way].values())
        return {
            "same_tokens": len(self.tokens) - len(set(self.different[way])),
            "different": sorted(set(self.different[way])),
            "time": {
                kind: {n: round(v, 4) for n, v in one.items()} for kind, one in ratios.items()
            },
            "passes_a_clip": spread(passes),
            "tokens_a_clip": spread(self.tokens),
            "accepted_a_pass": spread(a_pass)
            | {"of_all": round(sum(map(sum, self.accepted[way])) / sum(passes), 3)},
            "share_of_time": {n: round(v / spent, 3) for n, v in self.parts[way].items()},
        }

    def greedy_seconds(self) -> dict[str, float]:
        """Seconds a clip without drafts."""
        return {kind: round(float(np.mean(self.seconds[GREEDY, kind])), 4) for kind in CLOCKS}


def draft_of(name: str, recognizer: WhisperRecognizer) -> Any:
    """What `draft` takes; a float is the share of words to replace, clip by clip."""
    kind, _, value = name.partition(":")
    if name == "none":
        return lambda states: []
    if kind == "text":
        return float(value) / 100
    if kind == "layers":
        return LayerDraft(int(value))
    return getattr(importlib.import_module(kind), value)(recognizer)


def spread(values: list[Any]) -> dict[str, float]:
    """The mean over the clips, and quantiles."""
    found = {"mean": np.mean(values)}
    found |= {f"{100 * q:g}%": np.quantile(values, q) for q in QUANTILES}
    return {name: round(float(value), 3) for name, value in found.items()}


@contextmanager
def clocks(recognizer: WhisperRecognizer, spent: dict[str, float]) -> Iterator[None]:
    """Add up where the processor time of a `generate` with drafts goes.

    The encoder; drafting; the layers of the decoder in its passes, and the product with the
    vocabulary there; and the rest, which is Python and the rules of `generate`.
    """
    inside: list[float] = []  # of the clocks that run, the time that belongs to inner ones

    def timed(part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = process_time()
            inside.append(0.0)
            try:
                return run(*args, **kwargs)
            finally:
                took = process_time() - start
                inner = inside.pop()
                own = "drafting" if drafting and part != "encoder" else part
                spent[own] = spent.get(own, 0.0) + took - inner
                if inside:
                    inside[-1] += took

        return clocked

    drafting: list[int] = []
    project, drafts_of = drafts.project, drafts.drafting

    def watched(*args: Any) -> Any:
        loop = drafts_of(*args)
        begin = loop.begin

        def begun(*args: Any) -> Any:
            drafting.append(1)
            drafter = timed("drafting", begin)(*args)
            drafting.pop()
            propose = timed("drafting", drafter.propose)

            def proposing(*args: Any) -> Any:
                drafting.append(1)
                try:
                    return propose(*args)
                finally:
                    drafting.pop()

            drafter.propose = proposing
            return drafter

        loop.begin = begun
        return loop

    dynamic = recognizer.dynamic
    encoder, decoder = dynamic.backbone.owner(dynamic.base), dynamic.model.get_decoder()
    generate, generate_module = dynamic.generate, importlib.import_module("sounding.model.generate")
    before = {part: vars(part).get("forward") for part in (encoder, decoder)}
    drafts.project = timed("vocabulary", project)
    generate_module.drafting = watched
    encoder.forward = timed("encoder", encoder.forward)
    decoder.forward = timed("decoder", decoder.forward)
    dynamic.generate = timed("rest", generate)
    try:
        yield
    finally:
        drafts.project, generate_module.drafting = project, drafts_of
        del dynamic.generate
        for part, forward in before.items():
            del part.forward
            if forward is not None:
                part.forward = forward


def table(found: dict[str, Any], runs: Runs) -> Table:
    """For people."""
    seconds = runs.greedy_seconds()
    made = Table(title=f"greedy: {seconds['processor']:.3f} s of processor time a clip")
    headings = ("draft", "same tokens", "processor time", "wall time", "passes", "accepted a pass")
    for heading in (*headings, "encoder", "decoder", "vocabulary", "drafting", "rest"):
        made.add_column(heading)
    for name, one in found.items():
        shares = [one["share_of_time"].get(part, 0.0) for part in
                  ("encoder", "decoder", "vocabulary", "drafting", "rest")]  # fmt: skip
        made.add_row(
            name,
            f"{one['same_tokens']} of {len(runs.tokens)}",
            *("{ratio:.2f} ({low:.2f}-{high:.2f})".format(**one["time"][k]) for k in CLOCKS),
            f"{one['passes_a_clip']['mean']:.1f}",
            f"{one['accepted_a_pass']['of_all']:.1f}",
            *(f"{100 * share:.0f} %" for share in shares),
        )
    return made


if __name__ == "__main__":
    main()
