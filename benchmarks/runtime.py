"""Exported models against PyTorch: answers, accuracy in int8, speed, memory.

  python benchmarks/runtime.py RUN --data DIR/wakewords --out benchmarks/results/runtime
  python benchmarks/runtime.py RUN --data DIR/wakewords --out /tmp/try --limit 5 --rounds 3

Eight sections, each written to OUT/runtime.json when it is done (the first after every 50 clips).
The same command goes on where it stopped.

  parity  on all test clips, at every k: the largest relative error of fp32 ONNX against PyTorch
          (at most 1e-4), whether the class is the same, and the accuracy of fp32 and int8 (at most
          1 point apart)
  static  the accuracy of int8 with ranges measured before on 24 training clips, at every k
  speed   one clip, batch 1, against transformers at full depth (through the wrapper, which adds
          less than 1 %, see timing.py, since plain Whisper takes nothing but 30 s): fp32 ONNX at
          full depth (at least 1.2 times as fast), int8 at full depth (2), int8 at half depth (3.5)
  parts   the time at each k over front end + selector + head + k x layer, each part as a graph of
          its own (at most 1.03)
  memory  of the split export at k = 2 with unloading, against the same at full depth
  budgets the 95th percentile of the time on lengths that were not calibrated, over what was asked
          ("40ms"; at most 1.1), int8
  threads a call with a pause before it, on one thread and on all, which spin while they wait or do
          not, on the idle machine and while another process takes a core; int8
  governor a minute of test clips while another process takes a core from 20 s to 40 s: the share
          over the target (at most 5 %), beside the same model at full depth, and the accuracy;
          int8, on all cores. The same while as many processes as there are cores take them all.
          Also governor-CORES.csv and governor-CORES.png

Times are taken in alternation within one round; reported is the median over the rounds of the
ratio, with its bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from device import budgets, governor, spinning
from rich.console import Console
from rich.table import Table

from sounding import runtime
from sounding.cli.export import CALIBRATION
from sounding.data.audio import read_audio
from sounding.data.features import extract
from sounding.data.folder import load_folder, subset
from sounding.export import export, export_parts
from sounding.export.validate import sound
from sounding.files import sha256, write_json
from sounding.progress import progress
from sounding.runs.predict import predict_logits
from sounding.runs.run import Run, load_run, provenance

FORMS = {
    "fp32": {"name": "fp32.onnx"},
    "int8": {"name": "int8.onnx", "int8": True},
    "split": {"name": "split", "split": True},
    "split-int8": {"name": "split-int8", "split": True, "int8": True},
}
TARGETS = {"fp32 full": 1.2, "int8 full": 2.0, "int8 half": 3.5}
SAVE_EVERY = 50  # clips


def main() -> None:
    """Measure what is missing, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    run = load_run(options.run)
    paths = exports(run, out)
    settings = {
        "run": options.run,
        "data": load_folder(options.data).digest,
        "limit": options.limit,
        "threads": options.threads,
        "files": {name: sha256(path) for name, path in paths.items() if path.is_file()},
    }
    result = resumed(out / "runtime.json", settings)
    clock = {"rounds": options.rounds, "limit": options.limit}
    sections: dict[str, Callable[[], Any]] = {
        "parity": lambda: parity(run, paths, options, result, out),
        "static": lambda: static(run, options, result["parity"]),
        "speed": lambda: speed(run, paths, options),
        "parts": lambda: parts(paths, options),
        "memory": lambda: memory(paths, options),
        "budgets": lambda: budgets(paths["int8"], threads=options.threads, **clock),
        "threads": lambda: spinning(paths["int8"], **clock),
        "governor": lambda: [
            governor(paths["int8"], options.data, out, cores=cores, **clock)
            for cores in sorted({1, os.cpu_count() or 1})
        ],
    }
    for name in options.again:
        result.pop(name, None)
    for name, measure in sections.items():
        if name not in result:
            result[name] = measure()
            result.setdefault("commits", {})[name] = provenance()["commit"]
            write_json(out / "runtime.json", result)
    report(result)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run")
    parser.add_argument("--data", required=True, help="the folder of its test clips")
    parser.add_argument("--out", required=True, help="directory of exports and results")
    parser.add_argument("--limit", type=int, help="only so many clips")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3, help="rounds that are not counted")
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 3.0], help="of the clip")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", nargs="+", default=[], metavar="SECTION", help="measure anew")
    return parser.parse_args()


def exports(run: Run, out: Path) -> dict[str, Path]:
    """The exports, made where they are missing."""
    paths = {form: out / str(values["name"]) for form, values in FORMS.items()}
    missing = [form for form, path in paths.items() if not path.exists()]
    parts = export_parts(run.dynamic) if missing else None
    for form in missing:
        options: Any = {name: value for name, value in FORMS[form].items() if name != "name"}
        for line in export(run, paths[form], parts=parts, **options).lines():
            print(line, flush=True)
    return paths


def resumed(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call measured with the same settings."""
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"] == settings:
            return result
        raise SystemExit(f"{path} was measured with other settings: give another --out")
    return {"settings": settings, **provenance()}


def parity(
    run: Run,
    paths: dict[str, Path],
    options: argparse.Namespace,
    result: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Answers to all test clips at every k, in PyTorch, fp32 and int8."""
    models = {name: runtime.load(paths[name], threads=options.threads) for name in ("fp32", "int8")}
    layers = run.dynamic.num_layers
    folder = load_folder(options.data)
    clips = folder.split("test")[: options.limit]
    done: dict[str, Any] = result.setdefault("clips", {})
    with progress("parity", len(clips)) as show:
        for number, clip in enumerate(clips):
            key = folder.name(clip)
            if key not in done:
                samples = read_audio(clip.path, rate=16000, max_seconds=run.config.max_seconds)
                reference = extract(samples, run.extractor)
                features = models["fp32"].extract(samples)
                done[key] = {
                    "target": run.labels.index(clip.target),
                    "features": float(np.abs(features - reference).max()),
                    "k": [
                        one_clip(run, models, reference, features, k) for k in range(1, layers + 1)
                    ],
                }
            if number % SAVE_EVERY == SAVE_EVERY - 1:
                write_json(out / "runtime.json", result)
            show(number + 1, "")
    return summary(done, layers)


def one_clip(
    run: Run, models: dict[str, Any], reference: np.ndarray, features: np.ndarray, k: int
) -> dict[str, Any]:
    """PyTorch's features go through PyTorch, the runtime's own through ONNX."""
    logits, executed = predict_logits(run, run.collate([reference]), k)
    expected = logits.numpy()
    row: dict[str, Any] = {"torch": int(expected.argmax())}
    for name, model in models.items():
        got, ran = model.predict(features[None], k)
        row[name] = int(got.argmax())
        row[f"{name}_error"] = float(np.abs(got - expected).max() / np.abs(expected).max())
        row[f"{name}_layers"] = bool((ran == executed.numpy()).all())
    return row


def summary(done: dict[str, Any], layers: int) -> dict[str, Any]:
    """Over all clips, for each k."""
    targets = np.array([clip["target"] for clip in done.values()])
    rows = []
    for k in range(layers):
        at = [clip["k"][k] for clip in done.values()]
        accuracy = {
            name: float(np.mean([row[name] for row in at] == targets))
            for name in ("torch", "fp32", "int8")
        }
        rows.append(
            {
                "k": k + 1,
                "error": max(row["fp32_error"] for row in at),
                "same_class": sum(row["fp32"] == row["torch"] for row in at),
                "same_layers": sum(row["fp32_layers"] for row in at),
                "accuracy": accuracy,
                "int8_points": 100 * (accuracy["int8"] - accuracy["fp32"]),
                "int8_same_class": sum(row["int8"] == row["fp32"] for row in at),
            }
        )
    features = max(clip["features"] for clip in done.values())
    return {"clips": len(done), "largest_feature_difference": features, "rows": rows}


def static(run: Run, options: argparse.Namespace, parity: dict[str, Any]) -> dict[str, Any]:
    """Int8 with static ranges on all test clips, beside fp32 and int8 with ranges as they come."""
    folder = load_folder(options.data)
    some, seconds = subset(folder, "train", CALIBRATION, 0), run.config.max_seconds
    calibration = [
        extract(read_audio(clip.path, rate=16000, max_seconds=seconds), run.extractor)
        for clip in some
    ]
    clips = folder.split("test")[: options.limit]
    right = np.zeros(run.dynamic.num_layers)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "static.onnx"
        made = export(run, path, int8=True, calibration=calibration)
        model = runtime.load(path, threads=options.threads)
        with progress("static int8", len(clips)) as show:
            for number, clip in enumerate(clips):
                features = model.features(clip.path)[None]
                target = run.labels.index(clip.target)
                for index in range(len(right)):
                    logits, _ = model.predict(features, index + 1)
                    right[index] += logits.argmax() == target
                show(number + 1, "")
    accuracies = (right / len(clips)).tolist()
    points = [
        100 * (own - row["accuracy"]["fp32"])
        for own, row in zip(accuracies, parity["rows"], strict=True)
    ]
    return {"accuracy": accuracies, "points": points, "speed_up_over_fp32": made.speed_up}


def speed(run: Run, paths: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Against plain transformers, the same features."""
    fp32, int8 = (runtime.load(paths[name], threads=options.threads) for name in ("fp32", "int8"))
    layers = run.dynamic.num_layers
    rows = []
    for seconds in options.seconds:
        features = fp32.extract(sound(seconds, 16000))
        batch = run.collate([features])

        def transformers(batch: Any = batch) -> Any:
            with torch.inference_mode():
                return run.dynamic(**batch)

        one = features[None]
        calls = {
            "transformers": transformers,
            "fp32 full": lambda one=one: fp32.predict(one, layers),
            "int8 full": lambda one=one: int8.predict(one, layers),
            "int8 half": lambda one=one: int8.predict(one, layers // 2),
        }
        times = timed(calls, options)
        for name, target in TARGETS.items():
            ratio = interval(times["transformers"] / times[name])
            rows.append({"seconds": seconds, "case": name, "target": target, **ratio})
        rows[-1]["milliseconds"] = {n: 1000 * float(np.median(v)) for n, v in times.items()}
    return rows


def parts(paths: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The one file at each k against its parts."""
    rows = []
    for one, split in (("fp32", "split"), ("int8", "split-int8")):
        whole: Any = runtime.load(paths[one], threads=options.threads)
        pieces: Any = runtime.load(paths[split], threads=options.threads)
        for seconds in options.seconds:
            features = whole.extract(sound(seconds, 16000))[None]
            rows += at_each_k(whole, pieces, features, options, {"form": one, "seconds": seconds})
    return rows


def at_each_k(
    whole: Any, pieces: Any, features: np.ndarray, options: argparse.Namespace, of: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of one form and length."""
    state, *extras = pieces.run_part("front", {"features": features})
    feed = {"state": state} | {f"extra_{i}": extra for i, extra in enumerate(extras)}
    choice: dict[str, Any] = {"state": state, "k": np.array([1], np.int64)}
    if pieces.meta.selector == "gates":
        choice["threshold"] = np.array(np.inf, np.float32)
    layers = whole.meta.layers
    rows = []
    for k in range(1, layers + 1):
        head = f"head_{k}" if f"head_{k}" in pieces.files else "head"
        ran = np.flatnonzero(whole.predict(features, k)[1][0])
        calls = {
            "whole": lambda k=k: whole.predict(features, k),
            "front": lambda: pieces.run_part("front", {"features": features}),
            "selector": lambda: pieces.run_part("selector", choice),
            "head": lambda head=head: pieces.run_part(head, {"state": state}),
        }
        calls |= {
            f"layer_{index}": lambda index=index: pieces.run_part(f"layer_{index}", feed)
            for index in ran
        }
        times = timed(calls, options)
        total = sum(value for name, value in times.items() if name != "whole")
        if k == layers:  # nothing is chosen
            total = total - times["selector"]
        milliseconds = {name: 1000 * float(np.median(value)) for name, value in times.items()}
        ratio = interval(times["whole"] / total)
        rows.append({**of, "k": k, "target": 1.03, **ratio, "milliseconds": milliseconds})
    return rows


def timed(
    calls: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Seconds of each call, [rounds], taken in alternation."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(options.rounds + options.warm_up):
        order = list(calls) if number % 2 else list(calls)[::-1]
        for name in order:
            began = perf_counter()
            calls[name]()
            if number >= options.warm_up:
                taken[name].append(perf_counter() - began)
    return {name: np.array(values) for name, values in taken.items()}


def interval(ratios: np.ndarray) -> dict[str, float]:
    """Median and its bootstrap 95 % interval."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


RESIDENT = """
import sys
import numpy as np
from sounding import runtime

def megabytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) / 1024 for l in lines if l.startswith("VmRSS"))

path, k, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
before = megabytes()
model = runtime.load(path, threads=1, unload=True)
samples = 0.1 * np.random.default_rng(0).normal(size=int(seconds * 16000)).astype(np.float32)
for _ in range(3):
    model.run(samples, k)
print(megabytes() - before)
"""


def memory(paths: dict[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What stays resident after some clips, in a process of its own."""
    rows = []
    for form in ("split", "split-int8"):
        layers = runtime.load(paths[form]).meta.layers
        megabytes = {}
        for k in (2, layers):
            command = [sys.executable, "-c", RESIDENT, str(paths[form]), str(k)]
            done = subprocess.run(
                [*command, str(options.seconds[-1])], capture_output=True, text=True, check=True
            )
            megabytes[k] = float(done.stdout)
        rows.append({"form": form, "k": 2, "megabytes": megabytes[2], "full": megabytes[layers]})
    return rows


def report(result: dict[str, Any]) -> None:
    """Tables of all sections."""
    console = Console()
    made = result["parity"]
    table = Table(title=f"{made['clips']} clips, features {made['largest_feature_difference']:.1e}")
    for name in ("k", "error", "same class", "same layers", "torch", "fp32", "int8", "points"):
        table.add_column(name, justify="right")
    for row in made["rows"]:
        accuracy = [f"{100 * row['accuracy'][name]:.1f}" for name in ("torch", "fp32", "int8")]
        counts = [str(row[name]) for name in ("same_class", "same_layers")]
        points = f"{row['int8_points']:+.2f}"
        table.add_row(str(row["k"]), f"{row['error']:.1e}", *counts, *accuracy, points)
    console.print(table)
    made = result["static"]
    for k, (accuracy, points) in enumerate(zip(made["accuracy"], made["points"], strict=True), 1):
        console.print(f"static int8, k = {k}: {100 * accuracy:.1f} %, {points:+.2f} points to fp32")
    table = Table(title="times as fast as transformers; one file over its parts")
    for name in ("case", "seconds", "k", "ratio", "95 % interval", "target"):
        table.add_column(name, justify="right")
    for row in result["speed"] + result["parts"]:
        case = row.get("case") or row["form"]
        between = f"{row['low']:.3f}-{row['high']:.3f}"
        k, target = str(row.get("k", "")), f"{row['target']:g}"
        table.add_row(case, f"{row['seconds']:g}", k, f"{row['ratio']:.3f}", between, target)
    console.print(table)
    for row in result["memory"]:
        console.print(
            f"{row['form']}: {row['megabytes']:.0f} MB at k = 2, {row['full']:.0f} MB at full depth"
        )
    for row in result["budgets"]:
        if not row["inputs"]:
            console.print(f"asked {row['asked_ms']:.1f} ms: one layer takes longer")
            continue
        console.print(
            f"asked {row['asked_ms']:.1f} ms: 95th percentile {row['ratio']:.3f} of it (at most "
            f"{row['target']:g}), {row['kept_layers']:.2f} layers, {row['inputs']} inputs"
        )
    for row in result["threads"]:
        console.print(
            f"{'busy' if row['busy'] else 'idle'}, {row['threads']} threads, spin {row['spin']}, "
            f"k = {row['k']}: {row['median_ms']:.1f} ms, 95th percentile {row['p95_ms']:.1f} ms"
        )
    for made in result["governor"]:
        for who in ("governed", "full_depth"):
            told = made[who]
            console.print(
                f"{made['cores']} cores taken, {who}: {100 * told['over_target']:.1f} % of "
                f"{told['inputs']} inputs over {made['target_ms']:.1f} ms, accuracy "
                f"{100 * told['accuracy']:.1f} %, {told['layers']:.2f} layers"
            )


if __name__ == "__main__":
    main()
