"""Writes benchmarks/README.md from the results beside it: python benchmarks/page.py"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from device_page import rivals, runtime
from whisper_page import contests, depths, origin, whisper

from sounding.evaluation.sweep import Row, Sweep
from sounding.evaluation.table import markdown
from sounding.files import write_text
from sounding.methods.looks import looks
from sounding.recipes import load_recipe
from sounding.study.measured import FILE
from sounding.study.pack import PACK
from sounding.study.study import Study, load_study
from sounding.study.verdict import in_words, verdict_line
from sounding.tasks import metric_title

HERE = Path(__file__).parent
RESULTS = HERE / "results"
THREE = "DATA/ravdess DATA/esc10 DATA/wakewords"
RETIRED = {  # of a study: rows that no command makes any more
    "study": """ `input-search`
fitted the selector after the training, to the losses of all masks. It was no better, and its code
is gone: its rows are of commit 0b918d4."""
}
MOONSHINE = "--set backbone=moonshine-base"
STUDIES = {  # directory of the results -> title, and the arguments of `sounding compare`
    "study": (
        "Does the input matter? Whisper-base, three data sets, three seeds",
        f"--methods all --config benchmarks/study.yaml --data {THREE}",
    ),
    "converged": (
        "Every method until it is no better, Whisper-base, three seeds",
        f"--config benchmarks/converged.yaml --data {THREE}",
    ),
    "moonshine": (
        "Moonshine-base, three data sets, one seed",
        f"--config benchmarks/moonshine.yaml --data {THREE}",
    ),
    "asr-whisper": (
        "Speech recognition by CTC, Whisper-base",
        "--config benchmarks/asr.yaml --data DATA/speechocean762",
    ),
    "asr-moonshine": (
        "Speech recognition by CTC, Moonshine-base",
        f"--config benchmarks/asr.yaml {MOONSHINE} --data DATA/speechocean762",
    ),
}
BACKBONES = {
    "Whisper-base": ("study", "asr-whisper"),
    "Moonshine-base": ("moonshine", "asr-moonshine"),
}
BOTH = ("full", "random", "early-exit", "static", "input")  # methods measured with each backbone
DATA = {"fsdd": "spoken digits"}
UNDER_WAY = """## {title}

Under way: `results/{name}/` has {count} measured runs, too few for a verdict. `sounding compare`
goes on from them.
"""
INTRO = """# Benchmarks

Written by `python benchmarks/page.py` from the files in `results/`; every figure there has the
command, seed, data digest, commit and machine that made it. They are kept small by `python
benchmarks/shrink.py`, run after each new result: a study is one Parquet file, from which `sounding
report benchmarks/results/NAME` (`pip install "sounding[study]"`) makes its page, its verdict and
its table as they were. Accuracy is on the test clips, which
nothing was selected on; seeds as said. Intervals are 95 %, over the clips; those of word error
rates over the speakers, where ten or more are known. MACs and latency are for one clip of median
length, with front end, selector and head. Latency is fp32, batch 1, an illustration; its share of
full depth is the median of paired, alternated timings.

All methods get the same data, steps and learning rates; they do not get the same compute: an
input-driven step runs a tree of masks (about twice the layers of full depth with 6 of them), a
random one half of full depth. Random dropping learns slowest and has not converged in so few epochs
(see its full depth): its distance is partly that of a short training.
"""


def main() -> None:
    """Write the page."""
    parts = [INTRO, both_backbones()]
    parts += [study(name) for name in STUDIES if (RESULTS / name).exists()]
    parts += [real_data(name, what) for name, what in DATA.items() if result(name).exists()]
    parts += [recipe(path) for path in sorted((RESULTS / "recipes").glob("*.json"))]
    parts += [*whisper(RESULTS), *contests(RESULTS), *depths(RESULTS)]
    parts += [runtime(path) for path in sorted((RESULTS / "runtime").glob("*/runtime.json"))]
    if result("rivals").exists():
        parts.append(rivals(json.loads(result("rivals").read_text(encoding="utf-8"))))
    if result("timing").exists():
        parts.append(timing(json.loads(result("timing").read_text(encoding="utf-8"))))
    if result("training").exists():
        parts.append(training(json.loads(result("training").read_text(encoding="utf-8"))))
    if result("skip_path").exists():
        parts.append(skip_path(json.loads(result("skip_path").read_text(encoding="utf-8"))))
    write_text(HERE / "README.md", "\n".join(parts))


def result(name: str) -> Path:
    """The JSON file of a benchmark."""
    return RESULTS / f"{name}.json"


def both_backbones() -> str:
    """The benchmarks side by side: at one layer, at half depth and at full depth."""
    found = {
        backbone: {one.data: one for name in names for one in measured(name)}
        for backbone, names in BACKBONES.items()
    }
    first, second = found.values()
    if not first or not second:
        return ""
    depths = ("1 layer", "half", "full")
    columns = " | ".join(f"{backbone}, {depth}" for backbone in found for depth in depths)
    lines = [f"| | method | {columns} |", "|---|---" + "|---:" * len(depths) * len(found) + "|"]
    for data, one in first.items():
        for method in BOTH:
            cells = [at_depths(by_data.get(data), method) for by_data in found.values()]
            figures = (x for cell in cells for x in cell)
            row = (data + ", " + metric_title(one.metric), looks()[method].label, *figures)
            lines.append("| " + " | ".join(row) + " |")
    layers = " and ".join(str(next(iter(by_data.values())).layers) for by_data in found.values())
    return f"""## Two backbones, four benchmarks

Exact budgets on the test clips; {" and ".join(found)} have {layers} layers. In percent; the higher
accuracy is the better, and the lower WER (speech recognition by CTC). The mean of three seeds for
Whisper-base on the sets with classes, one seed elsewhere; -: not measured. Every budget, with
intervals, is in the sections below.

{chr(10).join(lines)}
"""


@cache
def measured(name: str) -> list[Study]:
    """The studies of a directory of results; none where it is not."""
    root = RESULTS / name
    found = any(next(root.rglob(file), None) for file in (FILE, PACK))
    return load_study(root) if found else []


def at_depths(one: Study | None, method: str) -> list[str]:
    """Cells of a method at one layer, half and full depth."""
    if one is None or method not in one.variants:
        return ["-", "-", "-"]
    values = [one.accuracy("test", (method, "exact"), k) for k in (1, one.layers // 2, one.layers)]
    shown = [x if one.metric == "accuracy" or x is None else 1 - x for x in values]
    return ["-" if x is None else f"{100 * x:.1f}" for x in shown]


def study(name: str) -> str:
    """Every method on some data sets: the verdicts in words, and the table of each."""
    title, arguments = STUDIES[name]
    if not (RESULTS / name / "verdict.json").exists():
        count = sum(len(one.runs) for one in measured(name))
        return UNDER_WAY.format(title=title, name=name, count=count)
    read = (RESULTS / name / "verdict.json").read_text(encoding="utf-8")
    verdicts = json.loads(read)["verdicts"]
    words = [f"- {one['data']}: {' '.join(in_words(one))}" for one in verdicts]
    words += [expected(one) for one in measured(name) if one.metric == "wer"]
    lines = "\n".join(verdict_line(one) for one in verdicts)
    table = (RESULTS / name / "table.md").read_text(encoding="utf-8").replace("## ", "### ")
    return f"""## {title}

`sounding compare {arguments}
--out benchmarks/results/{name} --drop-models` (settings in the YAML). All that was measured, clip
by clip, with commit, seconds and machine of each run, is in `results/{name}/measured.parquet`;
`sounding report benchmarks/results/{name} --out report.html` makes one page of it, with controls,
ablations, worst groups and pictures.{RETIRED.get(name, "")}

{chr(10).join(words)}

```
{lines}
```

{table}"""


def expected(study: Study) -> str:
    """What was expected of recognition, and what came."""
    budgets = range(1, study.layers + 1)
    rates = {
        method: {
            k: 1 - accuracy
            for k in budgets
            if (accuracy := study.accuracy("test", (method, "exact"), k)) is not None
        }
        for method in study.variants
    }
    ours, half = rates["input"], study.layers // 2
    lowest = [k for k in budgets if ours[k] == min(by_k[k] for by_k in rates.values())]
    return (
        f"- {study.data}: input-driven at half depth (k = {half}) has {100 * ours[half]:.1f} %, "
        f"{ours[half] / ours[study.layers] - 1:+.0%} relative to its own full depth "
        f"({100 * ours[study.layers]:.1f} %). Expected: at most +5 %. It has the lowest rate of "
        f"all methods at k = {', '.join(map(str, lowest)) or 'none'}; expected: at each."
    )


def real_data(name: str, what: str) -> str:
    """A data set's section: the command, the table, what was expected and what came."""
    sweep = Sweep.from_json(result(name))
    config = sweep.header["runs"][-1]["config"]
    extra = [] if config["max_seconds"] is None else [f"max_seconds={config['max_seconds']:g}"]
    command = " ".join([f"benchmarks/real_data.sh DATA/{name} {config['epochs']:g}", *extra])
    return f"""## {name}: {what}

`{command}` (Whisper-base, {sweep.header["clips"]} test clips, {origin(sweep.header)})

{verdict(sweep)}
{markdown(sweep)}
![]({result(name).with_suffix("").relative_to(HERE).as_posix()}/accuracy.png)
"""


def recipe(path: Path) -> str:
    """What a recipe gives, trained as it is."""
    sweep = Sweep.from_json(path)
    name, data = path.stem, sweep.header["data"]["name"]
    trained_by, trained_on = load_recipe(name).trained_by, sweep.header["runs"][0]["data"]["name"]
    how = f"--recipe {name} " if trained_by else ""  # a recipe of test clips alone
    return f"""## {name}: the recipe as it is

`sounding train --recipe {trained_by or name} --data DATA/{trained_on} --out RUN`, then `sounding
sweep RUN {how}--data DATA/{data} --json benchmarks/results/recipes/{name}.json`
({sweep.header["clips"]} test clips, {origin(sweep.header)})

{markdown(sweep)}"""


def verdict(sweep: Sweep) -> str:
    """The two expectations, by their numbers."""
    rows = {(row.method, row.kept_layers): row for row in sweep.rows}
    layers = max(k for _, k in rows)
    half, own, full = rows["input", layers // 2], rows["input", layers], rows["full", layers]
    lines = [
        f"- Half depth (k = {layers // 2}) {points(half, own)} of its own full depth and "
        f"{points(half, full)} of the model trained at full depth only. Expected on "
        "fsdd: within 1 point.",
    ]
    gains = [f"{points(rows['input', k], rows['random', k])} at k = {k}" for k in range(1, layers)]
    best = {m: [k for k in range(1, layers) if wins(rows, m, k, layers)] for m in METHODS}
    lines.append(f"- Over random dropping: {', '.join(gains)}. Expected: above at each.")
    shares = ", ".join(f"{METHODS[m]} at k = {ks}" for m, ks in best.items() if ks)
    lines.append(f"- Highest accuracy: {shares}.".replace("[", "").replace("]", ""))
    return "\n".join(lines) + "\n"


METHODS = {
    "input": "input-driven", "early-exit": "early exit", "first": "first k", "random": "random",
}  # fmt: skip


def wins(rows: dict[tuple[str, int], Row], method: str, k: int, layers: int) -> bool:
    """Whether no other method is better at k."""
    return all(rows[method, k].value >= rows[other, k].value for other in METHODS)


def points(row: Row, reference: Row) -> str:
    """A difference in percentage points."""
    return f"{100 * (row.value - reference.value):+.1f} points"


CASES = {
    "full": "full depth, over the plain model",
    "k": "k layers, over front end + k x layer",
    "mixed": "mixed masks, over the sum of the selected layers",
}


def timing(read: dict[str, Any]) -> str:
    """The executor's overhead."""
    columns = ("what", "clip", "batch", "kept layers", "ratio", "95 % interval", "at most", "")
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * 6 + "|---|"]
    for row in read["results"]:
        verdict = "yes" if row["passed"] else "**no**"
        lines.append(
            f"| {CASES[row['case']]} | {row['seconds']:g} s | {row['batch']} | {row['k']:g} | "
            f"{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {row['target']:.2f} | "
            f"{verdict} |"
        )
    rows = "\n".join(lines)
    return f"""## Time of the executor

`make bench`: {read["model"]}, {read["settings"]["rounds"]} rounds, commit
{str(read["commit"])[:12]}, {read["machine"]["cpu"]}, {read["settings"]["threads"]} threads. Both
sides of a ratio are timed in turn; the ratio is the median over the rounds.

{rows}
"""


def training(read: dict[str, Any]) -> str:
    """What a training costs, part by part."""
    lines = ["| what | ratio | 95 % interval | at most | |", "|---|---:|---:|---:|---|"]
    commands = []
    for part, found in read.items():
        settings, machine = found["settings"], found["machine"]
        data = "" if settings["data"] == "None" else f" --data DATA/{Path(settings['data']).name}"
        task = "" if settings["task"] == "auto" else f" --task {settings['task']}"
        commands.append(
            f"`python benchmarks/training.py {part}{data}{task}` ({settings['backbone']}, batches "
            f"of {settings['batch_size']}, {settings['rounds']} rounds, commit "
            f"{str(found['commit'])[:12]}, {machine['cpu']}, {settings['threads']} threads)"
        )
        for row in found["rows"]:
            interval = f"{row['low']:.3f} to {row['high']:.3f}" if "low" in row else "-"
            size = f" ({row['mb']:.0f} MB)" if "mb" in row else ""
            verdict = "yes" if row["ratio"] <= row["most"] else "**no**"
            lines.append(
                f"| {row['what']}{size} | {row['ratio']:.3f} | {interval} | {row['most']:.2f} | "
                f"{verdict} |"
            )
    return f"""## What a training costs

{"; ".join(commands)}. A step against one of plain `transformers` with the same batch, parameters
and precision; a step with its loading against the same one with the batch in hand; the peak of the
memory against that of the smallest corpus. The median of paired ratios, taken in turn.

{chr(10).join(lines)}
"""


def skip_path(read: dict[str, Any]) -> str:
    """Identity against the layer's final norm."""
    ks = sorted({row["kept_layers"] for row in read["rows"]})
    lines = ["| method | skip path | " + " | ".join(f"k = {k}" for k in ks) + " |"]
    lines.append("|---|---" + "|---:" * len(ks) + "|")
    groups = sorted({(row["method"], row["skip"]) for row in read["rows"]}, reverse=True)
    for method, skip in groups:
        values = [
            [r["value"] for r in read["rows"] if (r["method"], r["skip"], r["kept_layers"]) == key]
            for key in ((method, skip, k) for k in ks)
        ]
        cells = " | ".join(f"{100 * sum(v) / len(v):.1f} %" for v in values)
        lines.append(f"| {method} | {skip} | {cells} |")
    seeds = len({row["seed"] for row in read["rows"]})
    data = read["header"]["data"]["name"]
    return f"""## What passes a skipped layer

`python benchmarks/skip_path.py --data DATA/{data} --epochs {read["header"]["epochs"]:g} --seeds
{seeds}`: a small Conformer trained from scratch on {data}, {origin(read["header"])}. Accuracy, mean
of {seeds} seed(s).

{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
