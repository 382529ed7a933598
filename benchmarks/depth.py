"""Does it pay that the input decides the depth of Whisper? Word errors at mean budgets.

  python benchmarks/depth.py --model RUN/model --data DATA/ljspeech_part DATA/speechocean762 \\
      --limit 500 --out runs/depth

RUN is one of `sounding distill` to which `sounding calibrate RUN --data DIR` has fitted how many
layers an input needs. Each clip is by itself, at its own length with half a second of silence, as
in `sounding transcribe`. It is written down once at every number of encoder layers that a mean
budget may choose (greedy, the whole decoder), and its encoder runs at every mean budget, which says
what was chosen. From these come the word error rates of the choice and of its controls at the same
mean: one depth for all ("static": for each clip either of two depths, in expectation, those that do
best on these very clips), the choice of another clip ("shuffled", in expectation), and the best
choice by the errors themselves ("oracle", which nothing can reach). Differences are paired;
intervals are 95 %, over the speakers where ten or more are known, and not corrected for the number
of budgets.

Clips and texts are those of `benchmarks/whisper.py`. Results are in OUT/depth-DATA.json, and those
of the clips of all folders together in OUT/depth-together.json. Killed, the same command goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from whisper import RATE, WINDOW_SECONDS, Bench, Setting, by_length, each, generate, single, work

from sounding.data.features import clip_seconds, load_audio
from sounding.data.folder import Clip
from sounding.data.text import whisper_plain, word_errors
from sounding.files import sha256, write_json
from sounding.methods.depths import compared
from sounding.model.dynamic import DynamicModel
from sounding.model.io import CONFIG, UPDATES, file_of
from sounding.runs.run import provenance
from sounding.statistics import ratio_bootstrap, speaker_groups
from sounding.transcribe.whisper import LEARNED_TAIL_SECONDS

MEANS = (3.5, 4.0, 4.5, 5.0)


def main() -> int:
    """Measure each folder; the exit code is 2 after an error."""
    options = parse()
    counted: list[Counted] = []

    code = work(options, lambda path: counted.append(measure(Bench(options, path))))
    if code == 0 and len(counted) > 1:
        together(options, counted)
    return code


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="RUN/model")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, help="for results, and to go on from")
    parser.add_argument("--limit", type=int, help="so many clips, by a fixed rule")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of subsets and bootstrap")
    parser.set_defaults(processor=None, plain=False, settings=None)
    return parser.parse_args()


class Counted(NamedTuple):
    """What was counted of the clips of one folder.

    Attributes:
        chosen: layers by mean budget, of each clip.
        groups: what is drawn together: the speakers where ten or more are known, else the clips.
        made: which clips these are, for the result.

    Shape: errors [clips, depths], of `least`, `least` + 1, ... layers; words and seconds [clips].
    """

    errors: np.ndarray
    chosen: dict[float, list[int]]
    least: int
    words: np.ndarray
    seconds: np.ndarray
    groups: list[str]
    made: dict[str, Any]


def measure(bench: Bench) -> Counted:
    """Write clips down at every depth, ask what a mean budget chooses, and compare."""
    dynamic = bench.dynamic()
    policy: Any = dynamic.policy
    if policy.kind != "predicted" or not policy.mean_budgets:
        raise ValueError(
            f"{bench.model} does not predict depths: `sounding calibrate RUN --data DIR` fits that"
        )
    bench.made_with["updates_sha256"] = sha256(bench.directory / file_of(UPDATES))
    heard = [written(bench, dynamic, k) for k in policy.depths]
    chosen = choices(bench, dynamic)
    said = [whisper_plain(clip.target) for clip in bench.clips]
    errors = [
        [word_errors(text, whisper_plain(one[clip.path.name])) for one in heard]
        for text, clip in zip(said, bench.clips, strict=True)
    ]
    names = speaker_groups([clip.speaker for clip in bench.clips])
    names = names or [clip.path.name for clip in bench.clips]
    counted = Counted(
        np.array(errors, dtype=float),
        {m: [chosen[clip.path.name][str(m)] for clip in bench.clips] for m in MEANS},
        policy.least,
        words=np.array([len(text.split()) for text in said], dtype=float),
        seconds=np.array([clip_seconds(clip) for clip in bench.clips]),
        groups=[f"{bench.data}/{name}" for name in names],
        made={name: bench.made_with[name] for name in ("data", "data_digest", "clips")},
    )
    result = summary(counted, bench.options.seed)
    policy_sha256 = sha256(bench.directory / CONFIG)
    command = ["depth", *sys.argv[1:]]
    bench.write("depth", {"command": command, "sounding_json_sha256": policy_sha256, **result})
    Console(width=100).print(table(result["rows"], f"{bench.data}, {len(bench.clips)} clips: WER"))
    return counted


def together(options: argparse.Namespace, counted: Sequence[Counted]) -> None:
    """Compare on the clips of all folders, so that a mean is that over easy and hard ones."""
    chosen = {mean: [kept for one in counted for kept in one.chosen[mean]] for mean in MEANS}
    every = Counted(
        np.concatenate([one.errors for one in counted]),
        chosen,
        counted[0].least,
        np.concatenate([one.words for one in counted]),
        np.concatenate([one.seconds for one in counted]),
        [name for one in counted for name in one.groups],
        {
            "data": " and ".join(one.made["data"] for one in counted),
            "data_digest": " ".join(one.made["data_digest"][:12] for one in counted),
            "clips": len(chosen[MEANS[0]]),
        },
    )
    result = summary(every, options.seed)
    made = {"command": ["depth", *sys.argv[1:]], **every.made, **result, **provenance()}
    write_json(options.out / "depth-together.json", made)
    Console(width=100).print(table(result["rows"], f"{every.made['data']}: WER"))


def written(bench: Bench, dynamic: DynamicModel, k: int) -> dict[str, str]:
    """The text of each clip from k encoder layers, by the name of its file."""
    setting, name = Setting(k, len(dynamic.decoder_stack or ()), False), f"depth-e{k}"
    for (clip,), by_clip in each(bench, name, single(by_length(bench.clips))):
        (tokens,) = generate(bench, dynamic, setting, features(bench, clip))
        by_clip[clip.path.name] = bench.text(tokens)
    return bench.done(name)


def choices(bench: Bench, dynamic: DynamicModel) -> dict[str, dict[str, int]]:
    """How many layers really ran for each clip at each mean budget."""
    name = f"depth-choices-{sha256(bench.directory / CONFIG)[:8]}"  # anew for another fit
    for (clip,), by_clip in each(bench, name, single(by_length(bench.clips))):
        batch = {"input_features": features(bench, clip)}
        by_clip[clip.path.name] = {
            str(mean): int(dynamic.layer_outputs(batch, budget=f"mean:{mean}")[1].sum())
            for mean in MEANS
        }
    return bench.done(name)


def features(bench: Bench, clip: Clip) -> Tensor:
    """A clip with half a second of silence. Shape: -> [1, bins, frames]."""
    audio = load_audio(clip, RATE, None)
    wanted = min(len(audio) + int(LEARNED_TAIL_SECONDS * RATE), WINDOW_SECONDS * RATE)
    return bench.features_of(np.pad(audio, (0, max(0, wanted - len(audio)))), False)


def summary(counted: Counted, seed: int) -> dict[str, Any]:
    """Word error rates at each depth and each mean budget, with intervals and differences."""
    errors, chosen, least, words, seconds, groups, _ = counted

    def rate(counts: Any) -> list[float]:
        return list(ratio_bootstrap(np.asarray(counts), words, groups=groups, seed=seed))

    depths = {str(least + place): rate(column) for place, column in enumerate(errors.T)}
    rows = []
    for mean, layers in chosen.items():
        kept = torch.tensor(layers)
        found = {n: v.numpy() for n, v in compared(torch.from_numpy(errors), kept, least).items()}
        row: dict[str, Any] = {"mean": mean, "kept": float(kept.double().mean())}
        row["kept_by_seconds"] = float((np.array(layers) * seconds).sum() / seconds.sum())
        row["clips_by_kept"] = {str(k): layers.count(k) for k in sorted(set(layers))}
        row["wer"] = {name: rate(counts) for name, counts in found.items()}
        row["difference"] = {
            name: rate(found["predicted"] - found[name]) for name in ("static", "shuffled")
        }
        rows.append(row)
    return {"normalization": "whisper", "depths": depths, "rows": rows}


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """The results for people."""
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False)
    names = ("predicted", "static", "shuffled", "oracle")
    for heading in ("budget", "kept", "by seconds", *names, "to static", "95 %"):
        shown.add_column(heading, justify="right")
    for row in rows:
        mean, low, high = row["difference"]["static"]
        shown.add_row(
            f"mean:{row['mean']:g}",
            f"{row['kept']:.2f}",
            f"{row['kept_by_seconds']:.2f}",
            *[f"{row['wer'][name][0]:.1%}" for name in names],
            f"{100 * mean:+.1f}",
            f"{100 * low:+.1f}, {100 * high:+.1f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
