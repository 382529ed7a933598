"""The parts of benchmarks/README.md that are about devices, for page.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SEEDS = {"whisper-base": 2}  # of the run that was measured, where it is not 0


def runtime(path: Path) -> str:
    """Exported models of one run: what benchmarks/runtime.py measured."""
    read, name = json.loads(path.read_text(encoding="utf-8")), path.parent.name
    settings = read["settings"]
    return f"""## On a device: {name}

`python benchmarks/runtime.py {settings["run"]} --data DATA/wakewords --threads
{settings["threads"]} --out benchmarks/results/runtime/{name}`: an input-driven run on wake words
(`sounding train --recipe wakewords-{name} --data DATA/wakewords --out {settings["run"]}`, with seed
{SEEDS.get(name, 0)}), data {settings["data"][:12]}, {origin(read)}.

{parity(read["parity"], read["static"])}
{speed(read["speed"])}
{parts(read["parts"])}
Memory of the split export: {memory(read["memory"])}.

{budgets(read["budgets"])}
{spinning(read["threads"])}
{chr(10).join(governor(one, name) for one in read["governor"])}"""


def origin(read: Json) -> str:
    """Commits (of the sections, where these are several), machine, threads."""
    made = [read["commit"], *read.get("commits", {}).values()]
    commits = ", ".join(dict.fromkeys(str(one)[:12] for one in made))
    return f"commit {commits}, {read['machine']['cpu']}, {read['settings']['threads']} thread(s)"


def parity(read: Json, static: Json) -> str:
    """Answers of the exports against PyTorch's."""
    lines = []
    for row, right, lost in zip(read["rows"], static["accuracy"], static["points"], strict=True):
        torch, fp32, int8 = (percent(row["accuracy"][form]) for form in ("torch", "fp32", "int8"))
        same = f"{row['same_class']} of {read['clips']}"
        points = f"{row['int8_points']:+.1f}"
        error, ranges = f"{row['error']:.1e}", [percent(right), f"{lost:+.1f}"]
        lines.append([str(row["k"]), error, same, torch, fp32, int8, points, *ranges])
    columns = ["k", "relative error", "same class", "PyTorch", "fp32", "int8", "int8 - fp32"]
    return table([*columns, "static int8", "static - fp32"], lines)


def speed(rows: list[Json]) -> str:
    """Times as fast as transformers at full depth."""
    lines = [
        [
            row["case"],
            f"{row['seconds']:g} s",
            *ratio(row),
            f"{row['target']:g}",
            yes(row["ratio"] >= row["target"]),
        ]
        for row in rows
    ]
    return table(["case", "clip", "times as fast", "95 % interval", "at least", ""], lines)


def parts(rows: list[Json]) -> str:
    """The one file over its parts, and what the front end takes of it."""
    lines = [
        [
            row["form"],
            f"{row['seconds']:g} s",
            str(row["k"]),
            *ratio(row),
            f"{row['target']:g}",
            yes(row["ratio"] <= row["target"]),
        ]
        for row in rows
    ]
    shares = [
        f"{row['form']}, {row['seconds']:g} s: {percent(times['front'] / times['whole'])}"
        for row in rows
        if row["k"] == max(one["k"] for one in rows) and (times := row["milliseconds"])
    ]
    columns = ["form", "clip", "k", "whole over parts", "95 % interval", "at most", ""]
    return f"""{table(columns, lines)}
Of the time at full depth the front end takes ({"; ".join(shares)}). No choice of layers saves
that: its convolutions stay in fp32, since ONNX Runtime is slower at those that are quantized on
the fly. To go further they would have to become products over unfolded windows, which it quantizes
well.
"""


def memory(rows: list[Json]) -> str:
    """At k = 2 and at full depth."""
    return "; ".join(
        f"{row['form']} {row['megabytes']:.0f} MB at k = {row['k']}, {row['full']:.0f} MB at full"
        for row in rows
    )


def budgets(rows: list[Json]) -> str:
    """Budgets in time."""
    lines = [
        [
            f"{row['asked_ms']:.1f} ms",
            f"{row['p95_ms']:.1f} ms",
            f"{row['ratio']:.3f}",
            f"{row['target']:g}",
            f"{row['kept_layers']:.2f}",
            str(row["inputs"]),
            yes(row["ratio"] <= row["target"]),
        ]
        for row in rows
        if row["inputs"]
    ]
    columns = ["asked", "95th percentile", "over it", "at most", "layers, mean", "inputs", ""]
    return table(columns, lines)


def spinning(rows: list[Json]) -> str:
    """What threads that spin do to a call, idle and busy."""
    lines = [
        [
            "another process takes a core" if row["busy"] else "idle",
            str(row["threads"]),
            "yes" if row["spin"] else "no",
            str(row["k"]),
            f"{row['median_ms']:.1f} ms",
            f"{row['p95_ms']:.1f} ms",
        ]
        for row in rows
    ]
    columns = ["machine", "threads", "spin", "k", "median", "95th percentile"]
    return f"""A call of 2 s of audio in int8, with a pause of 20 ms before it:

{table(columns, lines)}"""


def governor(read: Json, name: str) -> str:
    """The governor under load, beside full depth."""
    lines = []
    for who, title in (("governed", "governed"), ("full_depth", "full depth")):
        row = read[who]
        shares = (row["over_target"], row["phases"]["busy"]["over_target"])
        over, busy = (percent(share) for share in shares)
        right = percent(row["accuracy"])
        lines.append([title, str(row["inputs"]), over, busy, f"{row['layers']:.2f}", right])
    start, end = read["busy"]
    columns = ["who", "inputs", "over the target", "while busy", "layers, mean", "accuracy"]
    target, allowed = f"{read['target_ms']:.1f} ms", percent(read["share_over_target_at_most"])
    return f"""Governor, {read["threads"]} threads, target {target}; other processes take
{read["cores"]} core(s) from {start:g} s to {end:g} s of {read["seconds"]:g} s. Expected: at most
{allowed} over the target.

{table(columns, lines)}
![](results/runtime/{name}/governor-{read["cores"]}.png)
"""


def rivals(read: Json) -> str:
    """What users would take today, beside ours: what benchmarks/rivals.py measured."""
    words = [
        [name, percent(row["accuracy"]), between(row), f"{row['rtf']:.4f}", str(row["clips"])]
        for name, row in read["wakewords"].items()
    ]
    texts = [
        [name, percent(row["wer"]), between(row), f"{row['rtf']:.4f}", str(row["clips"])]
        for name, row in read["ljspeech_part"].items()
    ]
    settings = read["settings"]
    limit = f" --limit {settings['limit']}" if settings["limit"] else ""
    return f"""## Against what users would take today

`python benchmarks/rivals.py {settings["run"]} --wakewords DATA/wakewords --ljspeech
DATA/ljspeech_part{limit} --threads {settings["threads"]} --out benchmarks/results/rivals.json`:
{origin(read)}. On wake words the transcribers have to write the word, and know no list of them;
ours was trained on that list and can say nothing else.

{table(["wake words", "accuracy", "95 %", "real-time factor", "clips"], words)}
{table(["LJSpeech", "WER", "95 %", "real-time factor", "clips"], texts)}"""


def table(columns: list[str], lines: list[list[str]]) -> str:
    """As Markdown; all columns but the first are numbers."""
    rows = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([*rows, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def percent(share: float) -> str:
    """As text."""
    return f"{100 * share:.1f} %"


def ratio(row: Json) -> list[str]:
    """The median, and its interval."""
    return [f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]


def between(row: Json) -> str:
    """An interval, in percent."""
    return f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"


def yes(passed: bool) -> str:
    """Whether a target was met."""
    return "yes" if passed else "**no**"
