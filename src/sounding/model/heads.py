"""Heads for encoders that `transformers` has none for (Whisper by CTC, Moonshine, Parakeet, ...).

Built as the heads of `transformers` are: a classifier projects, takes the mean over the valid
frames and classifies; a CTC head maps each frame to tokens.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from ..policies.pooling import frame_mean
from .backbones import find_backbone
from .losses import classification_loss, ctc_loss
from .padding import valid_frames


class EncoderConfig(PretrainedConfig):
    """The encoder's own configuration, for a head on it.

    Args:
        backbone: configuration of the model that holds the encoder, as `to_dict()`.
    """

    def __init__(self, backbone: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone or {}


class EncoderClassifierConfig(EncoderConfig):
    """The encoder's own configuration, and the width of the head.

    Args:
        classifier_proj_size: width between the encoder and the classes.
    """

    model_type = "sounding_classifier"

    def __init__(self, classifier_proj_size: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classifier_proj_size = classifier_proj_size


class EncoderCTCConfig(EncoderConfig):
    """The encoder's own configuration, and the number of tokens.

    Args:
        vocab_size: tokens, with the blank.
        pad_token_id: the blank, as in `transformers`.
        ctc_loss_reduction, ctc_zero_infinity: of the loss, where `labels` are given.
    """

    model_type = "sounding_ctc"

    def __init__(
        self,
        vocab_size: int = 32,
        pad_token_id: int = 0,
        ctc_loss_reduction: str = "mean",
        ctc_zero_infinity: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.vocab_size = vocab_size
        self.pad_token_id = pad_token_id
        self.ctc_loss_reduction = ctc_loss_reduction
        self.ctc_zero_infinity = ctc_zero_infinity


class _EncoderWithHead(PreTrainedModel):
    """An encoder of any supported family, without its decoder.

    Saved and loaded as any model of `transformers` (`from_pretrained` of its class).
    """

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        values = dict(config.backbone)
        kind = values.pop("model_type", "")
        whole = AutoModel.from_config(AutoConfig.for_model(kind, **values), trust_remote_code=False)
        encoder: Any
        self.family, encoder = find_backbone(whole)
        self.encoder = encoder
        self.main_input_name = encoder.main_input_name

    @classmethod
    def of(cls, model: PreTrainedModel, **values: Any) -> Self:
        """Put a new head on a copy of the encoder within `model`.

        Args:
            values: of the head's configuration: `id2label` and `label2id`, or `vocab_size`.

        Raises:
            ValueError: `model` holds no supported encoder.
        """
        _, encoder = find_backbone(model)
        config: Any = cls.config_class
        made = cls(config(backbone=model.config.to_dict(), **values))
        made.encoder.load_state_dict(encoder.state_dict())
        cast: Self = made.to(model.dtype)
        return cast

    def _encode(
        self,
        input_values: Tensor | None,
        input_features: Tensor | None,
        attention_mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        inputs = input_values if input_features is None else input_features
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        return self.encoder(**{self.main_input_name: inputs}, **kwargs)

    def _frames(self, attention_mask: Tensor | None) -> Tensor | None:
        """Count the valid frames of each input. Shape: -> [batch] int; None without a mask."""
        if attention_mask is None:
            return None
        return valid_frames(self.family, self.encoder, attention_mask.long().sum(-1))


class EncoderForAudioClassification(_EncoderWithHead):
    """An encoder with a classification head."""

    config_class = EncoderClassifierConfig

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__(config)
        self.projector = nn.Linear(self.encoder.config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Return the logits of a batch, and with labels the loss.

        The loss is that of the configuration's `problem_type`.

        Shape: input_values [batch, samples] or input_features [batch, frames, bins], as the
        encoder takes them; attention_mask of the same length; labels [batch] int, or
        [batch, labels] float -> logits [batch, labels].
        """
        encoded = self._encode(input_values, input_features, attention_mask, kwargs)
        hidden = self.projector(encoded[0])
        valid, frames = None, self._frames(attention_mask)
        if frames is not None:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        logits = self.classifier(frame_mean(hidden, valid))
        return SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=encoded.get("hidden_states"),
        )


class EncoderForCTC(_EncoderWithHead):
    """An encoder with a CTC head: tokens for each frame, the blank among them."""

    config_class = EncoderCTCConfig

    def __init__(self, config: EncoderCTCConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(self.encoder.config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Return the logits of each frame, and with labels the loss.

        The logits of padded frames mean nothing.

        Shape: as `EncoderForAudioClassification` takes it; labels [batch, length] int, padded
        with the blank or with -100 -> logits [batch, frames, tokens].
        """
        encoded = self._encode(input_values, input_features, attention_mask, kwargs)
        logits, loss = self.lm_head(encoded[0]), None
        if labels is not None:
            loss = ctc_loss(logits, labels, self._frames(attention_mask), self.config)
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=encoded.get("hidden_states"))


HEADS = {head.__name__: head for head in (EncoderForAudioClassification, EncoderForCTC)}


CLASSIFIERS = ("ForAudioClassification", "ForSequenceClassification")
CTC = "ForCTC"


def head_of(model: Any) -> Any:
    """Find the part of a model that classifies or does CTC, by its class or a base of that.

    It may stand within a model of somebody else, as of PEFT; the model itself where there is none.
    """
    return next((one for one in model.modules() if is_a(one, *CLASSIFIERS, CTC)), model)


def is_a(module: nn.Module, *endings: str) -> bool:
    """Return whether the class of a module, or a base of it, has a name that ends so."""
    return any(cls.__name__.endswith(endings) for cls in type(module).__mro__)
