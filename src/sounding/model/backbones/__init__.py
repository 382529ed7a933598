"""The supported families of encoders. To add one: docs/backbones.md."""

from __future__ import annotations

from torch import nn

from ...errors import UsageError
from ...registry import BACKBONES
from .ast import AST
from .base import Backbone
from .moonshine import Moonshine
from .parakeet import Parakeet
from .wav2vec2 import Data2VecAudio, Hubert, UniSpeechSat, Wav2Vec2, WavLM
from .wav2vec2_bert import Wav2Vec2Bert
from .whisper import Whisper

__all__ = ["Backbone", "find_backbone", "register_backbone"]


def register_backbone(backbone: Backbone) -> Backbone:
    """Make a family of encoders known by its name; it is asked before those that ship.

    Raises:
        UsageError: the name is taken.
    """
    BACKBONES.add(backbone.name, backbone)
    return backbone


for known in (
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
):
    register_backbone(known)


def find_backbone(model: nn.Module) -> tuple[Backbone, nn.Module]:
    """Return the family of a model, and its module that holds the encoder.

    Raises:
        ValueError: no part of the model is a supported encoder; the text lists those.
    """
    for module in model.modules():
        names = {cls.__name__ for cls in type(module).__mro__}
        for backbone in reversed(list(BACKBONES.values())):
            if backbone.base in names:
                return backbone, module
    supported = ", ".join(f"{b.name} ({b.base})" for b in BACKBONES.values())
    raise UsageError(
        f"{type(model).__name__} holds no supported encoder. Supported: {supported}. "
        "To add one, see docs/backbones.md"
    )
