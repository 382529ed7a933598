"""Measured runs of made-up data, whose answer is known: on "helps" the input matters, else not."""

from __future__ import annotations

import json

import numpy as np

METHODS = ("full", "random", "early-exit", "static", "i3d", "dld", "input")
LAYERS, CLIPS, HELP = 6, 240, 0.2
LABELS = ["<script>alert(1)</script>", "R&D $x$", "sad"]
SETS = {"validation": 0.0, "test": 0.0, "test at 10 dB": 0.1, "test at 0 dB": 0.2}


class Maker:
    """Writes the rows of one run: the same clips are hard for all methods and seeds."""

    def __init__(self, method, seed, set_name, gain):
        self.method, self.gain, self.noise = method, gain, SETS[set_name]
        self.hard = np.random.default_rng(list(SETS).index(set_name)).uniform(size=CLIPS)
        self.rng = np.random.default_rng([METHODS.index(method), seed, list(SETS).index(set_name)])

    def row(self, rule, budget, better=0.0, clips=None, draws=1, vary=False):
        chance = 0.3 + 0.1 * budget + better - self.noise
        own = self.rng.normal(0, 0.05, (draws, CLIPS))
        errors = (self.hard + own >= chance).astype(int).tolist()
        kept = round(budget)
        mask = "1" * kept + "0" * (LAYERS - kept)
        masks = [mask if i % 2 else mask[::-1] for i in range(CLIPS)] if vary else mask
        row = {"rule": rule, "budget": budget, "macs": 1e9 * (0.1 + 0.15 * budget)}
        if clips is not None:
            errors = [[line[i] for i in clips] for line in errors]
            masks = [masks[i] for i in clips] if vary else masks
            row["clips"] = list(clips)
        return {**row, "errors": errors, "masks": masks}

    def rows(self):
        looks = self.method == "input"
        draws = 3 if self.method in ("random", "dld") else 1
        rows = []
        for k in range(1, LAYERS + 1):
            better = self.gain if looks and k < LAYERS else 0.0
            rows.append(self.row("exact", k, better, draws=draws, vary=looks))
        for k in range(1, LAYERS):
            if self.method in ("static", "random", "dld", "input"):
                rows.append(self.row("static", k, 0.06 * (self.method == "static")))
            if looks:
                rows += [self.row("shuffled", k), self.row("constant", k)]
                rows.append(self.row("oracle", k, 0.3, vary=True))
                some = range(0, CLIPS, 3)
                rows.append(self.row("ceiling", k, 0.1, clips=some, vary=True))
                rows.append(self.row("ceiling-reference", k, clips=some, vary=True))
        if self.method in ("early-exit", "input"):
            rows += [self.row("mean", m, self.gain * looks, vary=True) for m in (2, 3.5, 4)]
            rows += [self.row("mean-shuffled", m, vary=True) for m in (2, 3.5, 4)]
        if self.method == "early-exit":
            rows.append(self.row("mean-entropy", 3))
        return rows


def measured(method, seed, data, *, variant=None, gain=None):
    gain = HELP * (data == "helps") if gain is None else gain
    rows = {name: Maker(method, seed, name, gain).rows() for name in SETS}
    return {
        "format": 2, "method": method, "variant": variant or method, "seed": seed,
        "layers": LAYERS, "data": {"name": data, "digest": "d1"}, "labels": LABELS,
        "config": {"method": method}, "steps": 400, "seconds": {"train": 60.0, "measure": 5.0},
        "versions": {"torch": "2"}, "commit": "c0ffee", "machine": {"cpu": "a <b>", "threads": 1},
        "macs": {"full": 1.0e9},
        "sets": {name: {"clips": columns(), "rows": rows[name]} for name in SETS},
    }  # fmt: skip


def columns():
    return {
        "file": [f"{i}.wav" for i in range(CLIPS)],
        "label": [LABELS[i % 3] for i in range(CLIPS)],
        "speaker": [f"s{i % 7}" if i > 2 else "rare" for i in range(CLIPS)],
        "seconds": [1 + i / 100 for i in range(CLIPS)],
    }


def write(root, run):
    path = root / f"{run['data']['name']}-{run['variant']}-{run['seed']}" / "measured.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))
    return path
