"""Time a wrapped model against the plain one and against the sum of the parts that run.

  python benchmarks/timing.py --json benchmarks/results/timing.json
  python benchmarks/timing.py --shapes wav2vec2 --seconds 3 10
  python benchmarks/timing.py --backbone whisper-base        # pretrained, by name, path or hub id

Three ratios, each of times taken in alternation (A B, then B A) within one round:

  full    wrapped at full depth / plain model                                     at most 1.01
  k       wrapped at budget k / (front end + k x one layer)                       at most 1.03
  mixed   a batch with a mask per input / (front end + each layer alone on just
          as many inputs as chose it)                                             at most 1.10

The front end is everything outside of the layers: convolutions, norms, head. The wrapped times
include the selector. Reported is the median of the ratios of the rounds with its bootstrap 95 %
interval; PASS is a median within the target. Milliseconds are an illustration of one machine.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers as t
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sounding
from sounding.core.backbones import find_backbone
from sounding.core.model import DynamicModel
from sounding.files import write_json
from sounding.progress import progress
from sounding.training.runs import provenance

WHISPER_BASE = {
    "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
    "num_labels": 35,
}  # fmt: skip
SHAPES: dict[str, tuple[Any, Any]] = {  # random weights in the base configuration
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
Run = Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """One ratio: wrapped time over reference time."""

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
    rounds: int


@dataclass
class Bench:
    """A plain model and a dynamic one with the same weights, and inputs for both.

    They are two only where Whisper is given less than its window, which plain Whisper refuses:
    the plain model then has its table of positions cut to that length.
    """

    plain: Any
    dynamic: DynamicModel
    inputs: dict[str, Tensor]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # of layer 0

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the plain model."""
        return list(_owner(self.plain).layers)

    def front_end(self) -> Any:
        """The plain model without its layers."""
        owner = _owner(self.plain)
        layers = owner.layers
        owner.layers = nn.ModuleList()
        try:
            return self.plain(**self.inputs)
        finally:
            owner.layers = layers

    def layer(self, index: int, rows: int) -> Any:
        """One layer of the plain model, alone, on the first `rows` inputs."""
        (hidden, *args), kwargs = self.arguments
        batch, backbone = hidden.shape[0], self.dynamic.backbone
        if rows < batch:
            first = torch.arange(rows)
            kwargs = {n: backbone.take(n, value, first, batch) for n, value in kwargs.items()}
        return self.layers[index](hidden[:rows], *args, **kwargs)


def main() -> None:
    """Time, print a table and write the JSON."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model, name = build(options)
    results: list[Result] = []
    total = len(options.seconds)
    with torch.inference_mode(), progress("timing", total) as advance:
        for seconds in options.seconds:
            results += full_and_each_k(model, seconds, options)
            results += mixed(model, seconds, options)
            advance(1)
    Console().print(table(results, name))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        write_json(
            options.json,
            {
                "model": name,
                "settings": settings,
                "results": [asdict(result) for result in results],
                **provenance(),
            },
        )


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=SHAPES, default="whisper-base", help="random weights")
    parser.add_argument("--backbone", help="pretrained weights in place of random ones")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 30.0])
    parser.add_argument("--batch", type=int, default=16, help="of the mixed case")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where to write the results")
    return parser.parse_args()


def build(options: argparse.Namespace) -> tuple[Any, str]:
    """The plain model in eval mode, and what to call it."""
    if options.backbone is None:
        model_class, config = SHAPES[options.shapes]
        return model_class(config).eval(), f"{options.shapes} (random weights)"
    from sounding.weights import resolve

    path = resolve(options.backbone)
    return t.AutoModelForAudioClassification.from_pretrained(path).eval(), options.backbone


# --- the cases ------------------------------------------------------------------------------


def full_and_each_k(model: Any, seconds: float, options: argparse.Namespace) -> Iterator[Result]:
    """One input at full depth, and at each budget."""
    with bench(model, seconds, 1) as it:
        count = it.dynamic.num_layers

        def all_layers() -> None:
            for index in range(count):
                it.layer(index, 1)

        runs: dict[Any, Run] = {
            "plain": lambda: it.plain(**it.inputs),
            "full": lambda: it.dynamic(**it.inputs),
            "front end": it.front_end,
            "layers": all_layers,
        }
        runs |= {k: (lambda k=k: it.dynamic(**it.inputs, budget=k)) for k in range(1, count + 1)}
        times = measure(runs, options)
        yield result("full", seconds, 1, count, times["full"], times["plain"], options)
        for k in range(1, count + 1):
            parts = times["front end"] + k * times["layers"] / count
            yield result("k", seconds, 1, k, times[k], parts, options)


def mixed(model: Any, seconds: float, options: argparse.Namespace) -> Iterator[Result]:
    """A batch in which each input runs layers of its own."""
    with bench(model, seconds, options.batch) as it:
        rng = np.random.default_rng(options.seed)
        shape = (options.batch, it.dynamic.num_layers)
        mask = torch.from_numpy(rng.random(shape) < 0.5)
        mask[~mask.any(1), 0] = True
        rows = mask.sum(0).tolist()

        def parts() -> None:
            it.front_end()
            for index, count in enumerate(rows):
                if count:
                    it.layer(index, count)

        runs = {"mixed": lambda: it.dynamic(**it.inputs, mask=mask), "parts": parts}
        times = measure(runs, options)
        k = float(mask.sum(1).float().mean())
        yield result("mixed", seconds, options.batch, k, times["mixed"], times["parts"], options)


# --- measuring ------------------------------------------------------------------------------


@contextmanager
def bench(model: Any, seconds: float, batch: int) -> Iterator[Bench]:
    """The models and inputs of one case; `model` is given back as it was."""
    backbone, base = find_backbone(model)
    inputs = backbone.example(base, batch, seconds)
    plain = shortened(model, inputs) if backbone.window(base) else model
    arguments: list[Any] = []
    handle = _owner(plain).layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: arguments.append((args, kwargs)), with_kwargs=True
    )
    plain(**inputs)
    handle.remove()
    yield Bench(plain, Alternating(model), inputs, arguments[0])  # type: ignore[arg-type]


class Alternating:
    """A dynamic model that is wrapped for the time of a call, so that `plain` is really plain."""

    def __init__(self, model: Any) -> None:
        self.model = model
        dynamic = sounding.wrap(model)
        self.selector, self.backbone = dynamic.selector, dynamic.backbone
        self.num_layers = dynamic.num_layers
        sounding.unwrap(dynamic)
