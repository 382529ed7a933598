"""A run as ONNX: built, validated against PyTorch, and only then put in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from transformers import (
    ASTFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from ..data.features import LIMIT_SECONDS, extract
from ..files import (
    UNSET,
    atomic_directory,
    atomic_path,
    sha256,
    temporary_directory,
    write_sealed_json,
)
from ..model.macs import count_macs
from ..model.updates import folded
from ..progress import progress
from ..runs.run import Run, provenance
from ..runtime import Metadata, Split, load
from ..runtime.features import FilterBank, LogMel, Waveform
from ..runtime.metadata import CHECKSUM, FORMAT, KEY, sealed
from ..runtime.model import MANIFEST
from ..runtime.profile import LENGTHS
from ..weights import NAMED
from .graph import dynamic_graph, head_name, static_graph
from .parts import OPSET, ExportError, Parts, check, export_parts
from .quantize import Feed, part_feeds, quantize
from .validate import SECONDS, Difference, faster, sound, validate

LARGEST = 2**31 - 1  # bytes of an ONNX file


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the file or directory.
        megabytes: its size.
        difference: from PyTorch, over some inputs and all budgets.
        speed_up: of int8 over fp32 at full depth on this machine; None for fp32.
    """

    path: Path
    megabytes: float
    difference: Difference
    speed_up: float | None

    def lines(self) -> list[str]:
        """Return what people are told of it, by line."""
        made = [
            f"{self.path}: {self.megabytes:.1f} MB, relative error against PyTorch "
            f"{self.difference.error:.1e}, {self.difference.agreeing} of {self.difference.answers} "
            "answers the same"
        ]
        if self.difference.other_layers:
            made.append(f"{self.difference.other_layers} answers ran other layers than in PyTorch")
        if self.speed_up is not None:
            made.append(f"int8 takes 1/{self.speed_up:.2f} of the time of fp32 at full depth here")
            if self.speed_up <= 1:
                made.append("int8 is slower than fp32 on this machine: take the fp32 export here")
        return made


def export(
    run: Run,
    out: Path | str,
    *,
    split: bool = False,
    mask: Sequence[bool] | None = None,
    int8: bool = False,
    calibration: Sequence[np.ndarray] | None = None,
    parts: Parts | None = None,
) -> Exported:
    """Write a run as ONNX for `sounding.runtime`.

    Args:
        out: a file whose name ends in .onnx, or a directory for `split`.
        split: the parts in files of their own, of which only those needed are loaded.
        mask: a plain graph of these layers, [layers], in place of one that chooses.
        int8: front end and layers in 8-bit integers.
        calibration: for int8, features of some clips, as `data.features.extract` makes them: the
            ranges of what enters a product are measured on these, and not anew for each input.
        parts: of the run, where `export_parts` has traced them already.

    Raises:
        ExportError: a run that has no export, or one that differs from PyTorch; nothing is
            written then.
    """
    out = Path(out)
    _refuse(run, out, split, mask)
    if mask is not None and not all(mask):
        with folded(run.dynamic):
            return _export(run, out, split, mask, int8, calibration, parts)
    return _export(run, out, split, mask, int8, calibration, parts)


def _export(
    run: Run,
    out: Path,
    split: bool,
    mask: Sequence[bool] | None,
    int8: bool,
    calibration: Sequence[np.ndarray] | None,
    parts: Parts | None,
) -> Exported:
    """Write a run that is known to have an export; see `export`."""
    if calibration is not None and not (int8 and calibration):
        raise ExportError("calibration clips are for int8: at least one, with --int8")
    check(run.dynamic)
    meta = metadata(run, mask, "int8" if int8 else "fp32")
    with temporary_directory(out) as work, progress("export", 3) as show:
        parts = export_parts(run.dynamic) if parts is None else parts
        show(1, "traced")
        made = parts
        if int8:
            feeds = None if calibration is None else _feeds(parts, run, calibration, work)
            made = quantize(parts, _examples(run, meta.limit_seconds), feeds, work)
        speed_up = None
        place = atomic_directory if split else atomic_path
        with place(out) as temporary:
            write(made, meta, temporary, split=split)
            show(2, "written")
            difference = validate(run, load(temporary, threads=1), exact=not int8)
            if int8:
                speed_up = _speed_up(parts, meta, temporary, work)
            size = sum(file.stat().st_size for file in _files(temporary))
        show(3, "validated")
    return Exported(out, size / 1e6, difference, speed_up)


def _refuse(run: Run, out: Path, split: bool, mask: Sequence[bool] | None) -> None:
    layers = run.dynamic.num_layers
    if run.task.runtime is None:
        raise ExportError(run.task.no_export)
    if split and mask is not None:
        raise ExportError("a fixed mask is one plain graph: give --split or a mask, not both")
    if split and out.suffix == ".onnx":
        raise ExportError(f"{out}: --split writes a directory: give a name without .onnx")
    if not split and (out.suffix != ".onnx" or out.is_dir()):
        raise ExportError(f"{out}: give the name of a file that ends in .onnx")
    if mask is not None and (len(mask) != layers or not any(mask)):
        raise ExportError(
            f"a mask has {layers} digits, one a layer, and keeps at least one; got {len(mask)}"
        )
    if mask is None and run.dynamic.updates is not None:
        raise ExportError(
            "the weights of this model change below full depth, so that a graph of all depths "
            "would need each layer twice: export one fixed mask with --mask or --layers"
        )
    if mask is None and run.method.draws_masks:
        raise ExportError(
            f"a run of method {run.config.method!r} has no selector, it was trained for masks from "
            "outside: export one of them with --mask or --layers"
        )


def metadata(run: Run, mask: Sequence[bool] | None, precision: str) -> Metadata:
    """Return what the exported model will say of itself."""
    extractor, policy = run.extractor, run.dynamic.policy
    features = feature_settings(extractor)
    limit, window = LIMIT_SECONDS, run.dynamic.backbone.window(run.dynamic.base)
    if window is not None:
        limit = min(limit, window * features["hop"] / features["rate"])
    known = NAMED.get(run.config.backbone)
    names = ("torch", "transformers", "onnx", "onnxruntime")
    return Metadata(
        format=FORMAT,
        task=run.task.runtime or run.task.data,
        labels=run.labels,
        rate=extractor.sampling_rate,
        features=features,
        limit_seconds=limit,
        max_seconds=run.config.max_seconds,
        layers=run.dynamic.num_layers,
        selector=policy.kind,
        mask=None if mask is None else [bool(kept) for kept in mask],
        mean_budgets=[] if mask is not None else list(run.dynamic.mean_budgets),
        macs=_macs(run, limit),
        precision=precision,
        backbone=run.config.backbone,
        licence=None if known is None else known.licence,
        data=run.info.get("data", {}),
        commit=provenance()["commit"],
        versions={name: version(name) for name in names},
        opset=OPSET,
        reads_threshold=policy.reads_threshold,
        confidence=run.task.confidence_by,
    )


def _macs(run: Run, limit: float) -> list[tuple[float, float, float]]:
    """Return what `Metadata.macs` has."""
    rows = []
    for seconds in sorted({min(length, limit) for length in LENGTHS}):
        samples = sound(seconds, run.extractor.sampling_rate)
        macs = count_macs(run.dynamic, run.collate([extract(samples, run.extractor)]))
        base = macs.front_end + macs.selector + max(macs.head, macs.exit)
        rows.append((seconds, float(base), sum(macs.layers) / len(macs.layers)))
    return rows


def feature_settings(extractor: Any) -> dict[str, Any]:
    """Return what `runtime.features.extractor` takes for the same features.

    Raises:
        ExportError: features that the runtime cannot make.
    """
    if isinstance(extractor, WhisperFeatureExtractor):
        return {
            "kind": LogMel.kind,
            "mels": extractor.feature_size,
            "n_fft": extractor.n_fft,
            "hop": extractor.hop_length,
            "rate": extractor.sampling_rate,
        }
    if isinstance(extractor, Wav2Vec2FeatureExtractor):
        return {"kind": Waveform.kind, "normalize": bool(extractor.do_normalize)}
    if isinstance(extractor, ASTFeatureExtractor):
        normal = extractor.do_normalize
        return {
            "kind": FilterBank.kind,
            "mels": extractor.num_mel_bins,
            "frames": extractor.max_length,
            "hop": extractor.sampling_rate // 100,
            "rate": extractor.sampling_rate,
            "mean": extractor.mean if normal else None,
            "deviation": extractor.std if normal else None,
        }
    raise ExportError(
        f"the runtime has no {type(extractor).__name__} without torch: it can make the features of "
        "Whisper and AST, and the waveforms of wav2vec 2.0, HuBERT, WavLM and Moonshine"
    )


def write(parts: Parts, meta: Metadata, path: Path, *, split: bool) -> None:
    """Write one file, or the files of a split export into an existing directory."""
    if split:
        _write_split(parts, meta, path)
    elif meta.mask is not None:
        _save(static_graph(parts, meta.mask), path, meta)
    else:
        mean = bool(meta.mean_budgets)
        graph = dynamic_graph(parts, mean=mean, several=meta.confidence == "sigmoid")
        _save(graph, path, meta)


def _write_split(parts: Parts, meta: Metadata, directory: Path) -> None:
    models = {"front": parts.front, "selector": parts.selector}
    models |= {f"layer_{index}": layer for index, layer in enumerate(parts.layers)}
    models |= {f"skip_{index}": skip for index, skip in enumerate(parts.skips)}
    models |= {head_name(parts, k): head for k, head in parts.heads.items()}
    for name, model in models.items():
        _save(model, directory / f"{name}.onnx", None)
    manifest = {
        "model": json.loads(meta.to_json()),
        "after": parts.after,
        "per_input": parts.per_input,
        "batches": parts.batches,
        "files": {name: sha256(directory / f"{name}.onnx") for name in models},
    }
    write_sealed_json(directory / MANIFEST, manifest)


def _save(model: onnx.ModelProto, path: Path, meta: Metadata | None) -> None:
    if model.ByteSize() > LARGEST:
        raise ExportError("the model is over 2 GB, the most that an ONNX file holds: use --split")
    if meta is not None:
        helper.set_model_props(model, {KEY: meta.to_json(), CHECKSUM: UNSET})
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    path.write_bytes(data if meta is None else sealed(data))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.iterdir())


def _examples(run: Run, limit: float) -> list[np.ndarray]:
    """Return features of made-up sounds of `limit` seconds at most.

    Shape: of each [frames, bins] or [samples].
    """
    rate = run.extractor.sampling_rate
    return [extract(sound(min(s, limit), rate), run.extractor) for s in SECONDS]


def _feeds(
    parts: Parts, run: Run, calibration: Sequence[np.ndarray], work: Path
) -> dict[str, list[Feed]]:
    """Return what enters each part on the calibration clips."""
    directory = work / "feeds"
    directory.mkdir()
    _write_split(parts, metadata(run, None, "fp32"), directory)
    model = load(directory, threads=1)
    assert isinstance(model, Split)
    return part_feeds(model, calibration)


def _speed_up(parts: Parts, meta: Metadata, path: Path, work: Path) -> float:
    """Return the speed-up of the int8 export at `path` over its parts in fp32, at full depth."""
    other = work / ("fp32" if path.is_dir() else "fp32.onnx")
    if path.is_dir():
        other.mkdir()
    write(parts, meta, other, split=path.is_dir())
    return faster(load(path, threads=1), load(other, threads=1))
