"""The sections of benchmarks/README.md about Whisper with its own decoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MODELS = {  # directory of the results of benchmarks/whisper.py -> its title, and what it is
    "whisper-ready": (
        "Whisper-base with the parts of the package",
        """Distilled by `sounding distill` ([recognizers below full depth](../docs/distill.md)). Six
layers are changed too where a clip is heard at its own length, and are the original where it is
padded. How the parts were made: `src/sounding/weights/parts/whisper-base/made.json`.""",
    ),
    "whisper-tiny": (
        "Whisper-tiny.en as it is",
        "The smaller sibling, with four and four layers of width 384, as a rival.",
    ),
    "whisper": (
        "Whisper-base with its own decoder, zero-shot",
        "The first k layers of a model that was never trained to miss any.",
    ),
    "whisper-tuned": (
        "Whisper-base with its own decoder, fine-tuned",
        """Trained by `sounding train --recipe speechocean762-whisper-base-decoder`, for encoder
budgets only: the layers that its selector keeps. Of the decoder, untrained for it, the first k.""",
    ),
}


def whisper(results: Path) -> list[str]:
    """Whisper with its own decoder: its tokens at full depth, or errors and speed by budget."""
    return [
        section(path, name, what)
        for directory, (name, what) in MODELS.items()
        for path in sorted((results / directory).glob("*-*.json"))
    ]


def section(path: Path, name: str, what: str) -> str:
    """Of one file of benchmarks/whisper.py."""
    read = json.loads(path.read_text(encoding="utf-8"))
    command, data = str(read["command"][0]), read["data"]
    words = [re.sub(r".*shared/data\b", "DATA", str(word)) for word in read["command"]]
    where = {"data": {"digest": read["data_digest"]}}
    title = f"`python benchmarks/whisper.py {' '.join(words)}` ({origin(read | where)})"
    if command == "parity":
        lines = [
            f"- {case}: {one['same']} of {one['clips']} clips have the tokens of plain "
            f"`transformers` ({one['tokens']} tokens); the encoder's output differs by at most "
            f"{one['largest_encoder_difference']:.2g}."
            for case, one in read["cases"].items()
        ]
        kind = name if read.get("parts") else "Whisper-base as it is"
        return f"## {kind}, {data}: parity\n\n{title}\n\n{chr(10).join(lines)}\n"
    learned = read.get("parts") is not None
    tail = (
        "half a second to one and a half of silence" if learned else "about two seconds of silence"
    )
    return f"""## {name}, {data}: errors and speed

{title}

{what}

{read["clips"]} test clips, {read["rows"][0].get("timed_clips", 0)} of them timed; texts by
Whisper's normalizer, at most {read["max_new_tokens"]} tokens. Padded to 30 s, or short: the clip
and {tail}. RTF: seconds of work for a second of audio, one clip at a time.
`ratio` is the time over that of full depth padded, where both write as many tokens: the median of
paired timings.

{by_budget(read["rows"])}
"""


def contests(results: Path) -> list[str]:
    """Recognizers against one another, by the files of benchmarks/contest.py."""
    return [contest(path) for path in sorted((results / "contest").glob("contest-*.json"))]


def contest(path: Path) -> str:
    """Of one file of benchmarks/contest.py."""
    read = json.loads(path.read_text(encoding="utf-8"))
    rows = read["rows"]
    lines = ["| contestant | WER | 95 % | RTF | ratio | 95 % |", "|---" + "|---:" * 5 + "|"]
    for row in rows:
        speed = ["-"] * 3
        if "rtf" in row:
            middle, low, high = row["ratio"]
            speed = [f"{row['rtf']:.3f}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
        rate = [f"{row['wer']:.1%}", f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"]
        lines.append("| " + " | ".join([shown(row["contestant"]), *rate, *speed]) + " |")
    return f"""## Recognizers in turn, {read["data"]}

`python benchmarks/{said(read["command"], "contest.py")}` ({origin(read | of_data(read))})

{read["clips"]} test clips, {rows[0].get("timed_clips", 0)} of them timed, one clip at a time and
all in turn; texts by Whisper's normalizer. `ratio` is the median of the paired ratios of the times
to that of the first.

{chr(10).join(lines)}
"""


def depths(results: Path) -> list[str]:
    """Predicted depths against one for all, by the files of benchmarks/depth.py."""
    return [depth(path) for path in sorted((results / "depth").glob("depth-*.json"))]


def depth(path: Path) -> str:
    """Of one file of benchmarks/depth.py."""
    read = json.loads(path.read_text(encoding="utf-8"))
    names = ("predicted", "static", "shuffled", "oracle")
    heads = ["budget", "kept", *names, "to static", "95 %", "to shuffled", "95 %"]
    lines = ["| " + " | ".join(heads) + " |", "|---:" * len(heads) + "|"]
    for row in read["rows"]:
        cells = [f"mean:{row['mean']:g}", f"{row['kept']:.2f}"]
        cells += [f"{row['wer'][name][0]:.1%}" for name in names]
        for name in ("static", "shuffled"):
            mean, low, high = (100 * value for value in row["difference"][name])
            cells += [f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    every = ", ".join(f"{k}: {rate[0]:.1%}" for k, rate in read["depths"].items())
    return f"""## Predicted depths of Whisper-base, {read["data"]}

`python benchmarks/{said(read["command"], "depth.py")}` ({origin(read | of_data(read))})

{read["clips"]} test clips; word error rates by Whisper's normalizer. By encoder layers, the same
for all clips: {every}. Differences in points, paired, over speakers where there are ten.

{chr(10).join(lines)}
"""


def said(command: list[Any], script: str) -> str:
    """A command as it is given, with the data sets below DATA and runs by their names."""
    return " ".join([script, *(shown(str(word)) for word in command[1:])])


def shown(word: str) -> str:
    """A word of a command without the directories of the machine."""
    return re.sub(r"/work/", "", re.sub(r".*shared/data\b", "DATA", word))


def of_data(read: dict[str, Any]) -> dict[str, Any]:
    """What `origin` reads of the data."""
    return {"data": {"digest": read["data_digest"]}}


def origin(header: dict[str, Any]) -> str:
    """Commit, data and machine."""
    machine = header["machine"]
    commit = str(header["commit"])[:12]
    digest = " ".join(one[:12] for one in header["data"]["digest"].split())
    return f"commit {commit}, data {digest}, {machine['cpu']}, {machine['threads']} threads"


def by_budget(rows: list[dict[str, Any]]) -> str:
    """The table of a sweep of Whisper: a line for each budget of encoder and decoder."""
    columns = ("WER", "95 %", "RTF", "ratio")
    titles = [f"{column}, {kind}" for kind in ("to 30 s", "short") for column in columns]
    lines = ["| encoder | decoder | " + " | ".join(titles) + " |", "|---:" * 10 + "|"]
    budgets = dict.fromkeys((row["encoder"], row["decoder"]) for row in rows)
    found = {(row["encoder"], row["decoder"], row["padded"]): row for row in rows}
    for encoder, decoder in budgets:
        cells = [str(encoder), str(decoder)]
        for padded in (True, False):
            cells += of_setting(found.get((encoder, decoder, padded)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_setting(row: dict[str, Any] | None) -> list[str]:
    """Four cells: the rate, its interval, and the speed where it was measured."""
    if row is None:
        return ["-"] * 4
    # files of before have "low" over clips, and both where there are speakers, here 42
    low, high = (row.get(f"{end}_speakers", row[end]) for end in ("low", "high"))
    rate = [f"{row['wer']:.1%}", f"{100 * low:.1f}-{100 * high:.1f}"]
    if "rtf" not in row:
        return [*rate, "-", "-"]
    return [*rate, f"{row['rtf']:.3f}", f"{row['ratio_same_text'][0]:.2f}"]
