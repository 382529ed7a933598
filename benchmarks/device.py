"""Threads, budgets in time and the governor, for benchmarks/runtime.py: on the real clock."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import numpy as np
import onnxruntime

from sounding import runtime
from sounding.data.folder import Clip, load_folder
from sounding.runtime import Governed, Model, Profile
from sounding.runtime.governor import plot_log, write_log
from sounding.runtime.model import SPINNING
from sounding.runtime.profile import SURE, device

HELD_OUT = 200  # inputs for each budget
SHARES = (0.4, 0.6, 0.8)  # of the time at full depth
RUN, BUSY = 60.0, (20.0, 40.0)  # seconds: of the run, and when the other process works
GAP = 0.02  # seconds between inputs
ROOM = 1.3  # target over the 95th percentile at full depth on the idle machine


def spinning(path: Path, *, rounds: int, limit: int | None) -> list[dict[str, Any]]:
    """A call on one thread and on all, with threads that spin while they wait and without.

    Inputs come one at a time, with a pause, on the idle machine and while another process takes a
    core.
    """
    count = os.cpu_count() or 1
    samples = np.random.default_rng(0).normal(0, 0.1, 2 * 16000).astype(np.float32)
    rows = []
    for busy in (False, True):
        others = _start(1, 0.0, 3600.0) if busy else []
        for threads, spin in dict.fromkeys(((1, False), (count, False), (count, True))):
            options = onnxruntime.SessionOptions()
            options.add_session_config_entry(SPINNING, str(int(spin)))
            model = runtime.load(path, threads=threads, options=options)
            for k in (1, model.meta.layers):
                taken = [_paused(model, samples, k) for _ in range(rounds + 5)][5:]
                middle, high = np.percentile(taken, [50, SURE])
                rows.append(
                    {"busy": busy, "threads": threads, "spin": spin, "k": k, "median_ms": middle,
                     "p95_ms": high}
                )  # fmt: skip
        for other in others:
            other.kill()
    return rows


def _paused(model: Model, samples: np.ndarray, k: int) -> float:
    """Milliseconds of one input, after a pause."""
    sleep(GAP)
    began = perf_counter()
    model.run(samples, k)
    return 1000 * (perf_counter() - began)


WORK = """
import sys
from time import monotonic, sleep
import numpy as np

start, end = map(float, sys.argv[1:])
print("ready", flush=True)
began = monotonic()
sleep(start)
values = np.ones((200, 200))
while monotonic() - began < end:  # without a product, which would have threads
    values = np.tanh(values) + 0.1
"""


def _start(cores: int, start: float, end: float) -> list[subprocess.Popen[str]]:
    """Processes that keep so many cores busy between two times from now."""
    command = [sys.executable, "-c", WORK, str(start), str(end)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(cores)]
    for other in others:
        assert other.stdout is not None
        other.stdout.readline()
    return others


def calibrated(path: Path, threads: int, rounds: int) -> Model:
    """A model with a profile made now."""
    model = runtime.load(path, threads=threads)
    table = model.calibrate((0.5, 1, 2, 4), rounds)
    model.profile = Profile(device(), model.digest(), model.meta.layers, {threads: table})
    return model


def budgets(path: Path, *, threads: int, rounds: int, limit: int | None) -> list[dict[str, Any]]:
    """The 95th percentile of the time on lengths that were not calibrated, over what was asked.

    Among the inputs whose budget one layer can keep; the target is at most 1.1.
    """
    model = calibrated(path, threads, rounds)
    assert model.profile is not None
    rng = np.random.default_rng(1)
    longest = min(4.0, model.meta.limit_seconds, model.meta.max_seconds or 4.0)
    full = model.profile.expected(longest / 2, model.meta.layers, threads)
    rows = []
    for share in SHARES:
        asked, taken, kept = share * full, [], []
        for _ in range(limit or HELD_OUT):
            seconds = rng.uniform(0.5, longest)
            samples = rng.normal(0, 0.1, int(seconds * model.meta.rate)).astype(np.float32)
            if model.profile.expected(seconds, 1, threads, sure=True) > asked:
                continue
            sleep(GAP)
            began = perf_counter()
            answer = model.run(samples, f"{asked}ms")
            taken.append(1000 * (perf_counter() - began))
            kept.append(answer.kept_layers)
        if not taken:
            rows.append({"asked_ms": asked, "inputs": 0})
            continue
        high = float(np.percentile(taken, SURE))
        rows.append(
            {"asked_ms": asked, "p95_ms": high, "ratio": high / asked, "target": 1.1,
             "inputs": len(taken), "kept_layers": float(np.mean(kept))}
        )  # fmt: skip
    return rows


def governor(
    path: Path,
    data: str,
    out: Path,
    *,
    cores: int,
    rounds: int,
    limit: int | None,
) -> dict[str, Any]:
    """A minute of inputs while other processes take so many cores for a third of it.

    Each clip goes through the governed model and through the same model at full depth, in turn.
    They use all cores, so that the other processes are in their way.
    """
    threads = os.cpu_count() or 1
    model = calibrated(path, threads, rounds)
    assert model.profile is not None
    clips = load_folder(data).split("test")
    samples = [model.samples(clip.path) for clip in clips]
    longest = max(len(one) for one in samples) / model.meta.rate
    target = ROOM * model.profile.expected(longest, model.meta.layers, threads, sure=True)
    governed = Governed(model, target)
    seen = _minute(model, governed, samples, cores, RUN if limit is None else 6.0)
    write_log(list(governed.steps), out / f"governor-{cores}.csv")
    plot_log(list(governed.steps), out / f"governor-{cores}.png")
    return {
        "target_ms": target,
        "threads": threads,
        "cores": cores,
        "seconds": RUN,
        "busy": list(BUSY),
        "share_over_target_at_most": 0.05,
        "governed": _summary(seen["governed"], target, clips),
        "full_depth": _summary(seen["full"], target, clips),
    }


def _minute(
    model: Model, governed: Governed, samples: Sequence[np.ndarray], cores: int, total: float
) -> dict[str, list[tuple[float, int, float, str, int]]]:
    """(at, clip, milliseconds, label, layers) of every input, by who answered."""
    seen: dict[str, list[tuple[float, int, float, str, int]]] = {"governed": [], "full": []}
    scale = total / RUN
    others = _start(cores, BUSY[0] * scale, BUSY[1] * scale)
    began, turn = monotonic(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be kept is counted below
        while (at := monotonic() - began) < total:
            index = turn % len(samples)
            for who in ("governed", "full") if turn % 2 else ("full", "governed"):
                start = perf_counter()
                if who == "governed":
                    answer = governed.run(samples[index])
                else:
                    answer = model.run(samples[index])
                taken = 1000 * (perf_counter() - start)
                seen[who].append((at, index, taken, answer.label, len(answer.executed_layers)))
                sleep(GAP)
            turn += 1
    for other in others:
        other.wait()
    return seen


def _summary(
    seen: Sequence[tuple[float, int, float, str, int]],
    target: float,
    clips: Sequence[Clip],
) -> dict[str, Any]:
    taken = np.array([row[2] for row in seen])
    right = [label == clips[index].target for _, index, _, label, _ in seen]
    phases = {}
    edges = (0.0, *BUSY, np.inf)
    for name, low, high in zip(("before", "busy", "after"), edges, edges[1:], strict=False):
        rows = [row for row in seen if low <= row[0] < high]
        if rows:
            phases[name] = {
                "over_target": float(np.mean([row[2] > target for row in rows])),
                "median_ms": float(np.median([row[2] for row in rows])),
                "layers": float(np.mean([row[4] for row in rows])),
            }
    return {
        "inputs": len(seen),
        "over_target": float((taken > target).mean()),
        "accuracy": float(np.mean(right)),
        "layers": float(np.mean([row[4] for row in seen])),
        "phases": phases,
    }
