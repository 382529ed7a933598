"""Time a wrapped model against the plain one and against the sum of the parts that run.

  python benchmarks/timing.py --json benchmarks/results/timing.json
  python benchmarks/timing.py --shapes wav2vec2 --seconds 3 10
  python benchmarks/timing.py --backbone whisper-base        # pretrained, by name, path or hub id

Three ratios, each of times taken in alternation (A B, then B A) within one round:

  full    wrapped at full depth / plain model                                     at most 1.01
  k       wrapped at budget k / (front end + k x one layer)                       at most 1.03
  mixed   a batch with a mask per input / (front end + each layer alone, on just
          as many inputs as chose it)                                             at most 1.10

The front end is everything outside of the layers: convolutions, norms, head. Wrapped times include
the selector, where a budget asks for it. Reported is the median over the rounds of the ratio, with
its bootstrap 95 % interval; PASS is a median within the target. Milliseconds are an illustration.
"""

from __future__ import annotations

import argparse
import copy
import gc
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers as t
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sounding
from sounding.files import write_json
from sounding.model.backbones import Backbone, find_backbone
from sounding.model.dynamic import DynamicModel
from sounding.runs.run import provenance

WHISPER_BASE = {
    "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
    "num_labels": 35,
}  # fmt: skip
SHAPES: dict[str, tuple[Any, Any]] = {  # in the configuration of the base model
    "whisper-base": (t.WhisperForAudioClassification, t.WhisperConfig(**WHISPER_BASE)),
    "whisper-tiny": (t.WhisperForAudioClassification, t.WhisperConfig(num_labels=35)),
    "wav2vec2": (t.Wav2Vec2ForSequenceClassification, t.Wav2Vec2Config()),
    "hubert": (t.HubertForSequenceClassification, t.HubertConfig()),
    "wavlm": (t.WavLMForSequenceClassification, t.WavLMConfig()),
    "wav2vec2-bert": (t.Wav2Vec2BertForSequenceClassification, t.Wav2Vec2BertConfig()),
    "ast": (t.ASTForAudioClassification, t.ASTConfig()),
    "parakeet": (t.ParakeetEncoder, t.ParakeetEncoderConfig()),
}
TARGETS = {"full": 1.01, "k": 1.03, "mixed": 1.10}
AT_LEAST = 0.1
Run = Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """One ratio, wrapped time over reference time; the interval is `low` to `high`."""

    case: str
    seconds: float
    batch: int
    k: float
    ratio: float
    low: float
    high: float
    target: float
    passed: bool
    milliseconds: float
    reference_milliseconds: float


def main() -> None:
    """Time, print a table and write the JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model, name = build(options)
    results: list[Result] = []
    with torch.inference_mode(), Console(stderr=True).status("timing") as status:
        for seconds in options.seconds:
            for case, batch in ((full_and_each_k, 1), (mixed, options.batch)):
                status.update(f"{case.__name__} at {seconds:g} s, batch of {batch}")
                parts, dynamic = Parts(model, seconds, batch), sounding.wrap(model)
                results += case(parts, dynamic, options)
                sounding.unwrap(dynamic)
    Console().print(table(results, name))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        rows = [asdict(result) for result in results]
        write_json(
            options.json, {"model": name, "settings": settings, "results": rows, **provenance()}
        )


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=SHAPES, default="whisper-base", help="random weights")
    parser.add_argument("--backbone", help="pretrained weights in place of random ones")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 30.0])
    parser.add_argument("--batch", type=int, default=16, help="size of the mixed batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


def build(options: argparse.Namespace) -> tuple[Any, str]:
    """The model in eval mode, and what to call it."""
    if options.backbone is None:
        model_class, config = SHAPES[options.shapes]
        return model_class(config).eval(), f"{options.shapes}, random weights"
    from sounding.weights import resolve

    path = resolve(options.backbone)
    return t.AutoModelForAudioClassification.from_pretrained(
        path, dtype=torch.float32
    ).eval(), options.backbone


class Parts:
    """A plain model with the weights of `model`, and its parts by themselves.

    Shape: hidden, the input of layer 0: [batch, frames, width].
    """

    def __init__(self, model: Any, seconds: float, batch: int) -> None:
        self.seconds = seconds
        self.backbone, base = find_backbone(model)
        self.inputs = self.backbone.example(base, batch, seconds)
        self.plain = twin(model, self.backbone, self.inputs)
        self.owner: Any = self.backbone.owner(find_backbone(self.plain)[1])
        self.layers = self.owner.layers
        seen: list[Any] = []
        handle = self.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        self.plain(**self.inputs)
        handle.remove()
        (self.hidden, *args), kwargs = seen[0]
        names = list(inspect.signature(self.layers[0].forward).parameters)[1:]
        self.kwargs = dict(zip(names, args, strict=False)) | kwargs

    def front_end(self) -> Any:
        """The plain model without its layers."""
        self.owner.layers = nn.ModuleList()
        try:
            return self.plain(**self.inputs)
        finally:
            self.owner.layers = self.layers

    def run(self, rows: list[int]) -> None:
        """The front end, then layer i alone on `rows[i]` inputs: one after the other.

        Repeating one part many times would time it with its weights in the cache.
        """
        self.front_end()
        kwargs = self.backbone.prepare(list(self.layers), self.hidden, self.kwargs)
        for layer, count in zip(self.layers, rows, strict=False):
            if count:
                layer(self.hidden[:count], **self.first(count, kwargs))

    def first(self, rows: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a layer for the first `rows` inputs."""
        batch = len(self.hidden)
        if rows == batch:
            return kwargs
        index = torch.arange(rows)
        return {name: self.backbone.take(name, kwargs[name], index, batch) for name in kwargs}


def twin(model: Any, backbone: Backbone, inputs: dict[str, Tensor]) -> Any:
    """Another model on the same memory.

    Plain Whisper takes nothing shorter than its window: its table of positions is cut to the
    length of the input.
    """
    config, state = copy.deepcopy(model.config), dict(model.state_dict())
    if backbone.window(find_backbone(model)[1]):
        frames = inputs[model.main_input_name].shape[-1] // 2
        config.max_source_positions = frames
        key = next(name for name in state if name.endswith("embed_positions.weight"))
        state[key] = state[key][:frames]
    other = type(model)(config).eval()
    other.load_state_dict(state, assign=True)
    return other


# --- the cases ------------------------------------------------------------------------------


def full_and_each_k(
    parts: Parts, dynamic: DynamicModel, options: argparse.Namespace
) -> Iterator[Result]:
    """One input, at full depth and at each budget."""
    count = dynamic.num_layers

    def at(k: int) -> Run:
        return lambda: dynamic(**parts.inputs, budget=k)

    def of(k: int) -> Run:
        return lambda: parts.run([1] * k)

    runs: dict[Any, Run] = {
        "plain": lambda: parts.plain(**parts.inputs),
        "full": lambda: dynamic(**parts.inputs),
    }
    for k in range(1, count + 1):
        runs |= {("wrapped", k): at(k), ("parts", k): of(k)}
    times = measure(runs, options)
    yield result("full", count, times["full"], times["plain"], parts, options)
    for k in range(1, count + 1):
        yield result("k", k, times["wrapped", k], times["parts", k], parts, options)


def mixed(parts: Parts, dynamic: DynamicModel, options: argparse.Namespace) -> Iterator[Result]:
    """A batch in which each input runs about half of the layers, each its own."""
    rng = np.random.default_rng(options.seed)
    mask = torch.from_numpy(rng.random((options.batch, dynamic.num_layers)) < 0.5)
    mask[~mask.any(1), 0] = True
    rows = mask.sum(0).tolist()

    runs = {
        "mixed": lambda: dynamic(**parts.inputs, mask=mask),
        "parts": lambda: parts.run(rows),
    }
    times = measure(runs, options)
    k = float(mask.sum(1).float().mean())
    yield result("mixed", k, times["mixed"], times["parts"], parts, options)


# --- measuring ------------------------------------------------------------------------------


def measure(runs: dict[Any, Run], options: argparse.Namespace) -> dict[Any, np.ndarray]:
    """Milliseconds of each run in each round: once in order, once in reverse. Shape: [rounds].

    A short run is repeated until it takes `AT_LEAST` seconds.
    """
    times: dict[Any, list[float]] = {name: [] for name in runs}
    repeats = {name: math.ceil(AT_LEAST / clock(run, 1)) for name, run in runs.items()}
    for turn in range(options.warm_up + options.rounds):
        gc.collect()
        spent = dict.fromkeys(runs, 0.0)
        for name in (*runs, *reversed(runs)):
            spent[name] += clock(runs[name], repeats[name]) / 2
        if turn >= options.warm_up:
            for name, value in spent.items():
                times[name].append(1000 * value)
    return {name: np.array(values) for name, values in times.items()}


def clock(run: Run, repeats: int) -> float:
    """Seconds of one run, as the mean of some."""
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats


def result(
    case: str,
    k: float,
    wrapped: np.ndarray,
    reference: np.ndarray,
    parts: Parts,
    options: argparse.Namespace,
) -> Result:
    """The median ratio of the rounds, with the percentile bootstrap of 10,000 resamples."""
    ratios = wrapped / reference
    rng = np.random.default_rng(options.seed)
    again = np.median(rng.choice(ratios, (10_000, len(ratios))), axis=1)
    low, high = np.quantile(again, [0.025, 0.975])
    ratio, target = float(np.median(ratios)), TARGETS[case]
    return Result(
        case=case,
        seconds=parts.seconds,
        batch=len(parts.hidden),
        k=k,
        ratio=ratio,
        low=float(low),
        high=float(high),
        target=target,
        passed=ratio <= target,
        milliseconds=float(np.median(wrapped)),
        reference_milliseconds=float(np.median(reference)),
    )


def table(results: list[Result], name: str) -> Table:
    """The results for people."""
    shown = Table(title=f"wrapped time / reference time: {name}", box=box.SIMPLE, pad_edge=False)
    for heading in ("case", "s", "batch", "k", "ratio", "95 %", "max", "", "ms", "ref."):
        shown.add_column(heading, justify="left" if heading in ("case", "") else "right")
    for r in results:
        shown.add_row(
            r.case,
            f"{r.seconds:g}",
            str(r.batch),
            f"{r.k:.3g}",
            f"{r.ratio:.3f}",
            f"{r.low:.3f}-{r.high:.3f}",
            f"{r.target:.2f}",
            "[green]PASS[/]" if r.passed else "[red]MISS[/]",
            f"{r.milliseconds:.1f}",
            f"{r.reference_milliseconds:.1f}",
        )
    return shown


if __name__ == "__main__":
    main()
