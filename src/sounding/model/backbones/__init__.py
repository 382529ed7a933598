"""The supported families of encoders. To add one: docs/backbones.md."""

from __future__ import annotations

from torch import nn

from .ast import AST
from .base import Backbone
from .moonshine import Moonshine
from .parakeet import Parakeet
from .wav2vec2 import Data2VecAudio, Hubert, UniSpeechSat, Wav2Vec2, WavLM
from .wav2vec2_bert import Wav2Vec2Bert
from .whisper import Whisper

__all__ = ["BACKBONES", "Backbone", "find_backbone", "register"]

BACKBONES: list[Backbone] = [
    Wav2Vec2(),
    Hubert(),
    WavLM(),
    Data2VecAudio(),
    UniSpeechSat(),
    Wav2Vec2Bert(),
    Whisper(),
    Moonshine(),
    AST(),
    Parakeet(),
]


def register(backbone: Backbone) -> None:
    """Add a family of encoders; it is asked before those that are built in."""
    BACKBONES.insert(0, backbone)


def find_backbone(model: nn.Module) -> tuple[Backbone, nn.Module]:
    """The family of a model, and its module that holds the encoder.

    Raises:
        ValueError: no part of the model is a supported encoder; the text lists those.
    """
    for module in model.modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        for backbone in BACKBONES:
            if backbone.base in names:
                return backbone, module
    supported = ", ".join(f"{b.name} ({b.base})" for b in BACKBONES)
    raise ValueError(
        f"{type(model).__name__} holds no supported encoder. Supported: {supported}. "
        "To add one, see docs/backbones.md"
    )
