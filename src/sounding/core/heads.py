"""A classification head for encoders that `transformers` has none for (Moonshine, Parakeet, ...).

Built as the heads of `transformers` are: a projection, the mean over the valid frames, a
classifier.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .backbones import find_backbone


class EncoderClassifierConfig(PretrainedConfig):
    """The encoder's own configuration, and the width of the head.

    Args:
        backbone: configuration of the model that holds the encoder, as `to_dict()`.
        classifier_proj_size: width between the encoder and the classes.
    """

    model_type = "sounding_classifier"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        classifier_proj_size: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone or {}
        self.classifier_proj_size = classifier_proj_size


class EncoderForAudioClassification(PreTrainedModel):
    """An encoder of any supported family, without its decoder, and a classification head.

    Saved and loaded as any model of `transformers` (`from_pretrained` of this class).
    """

    config_class = EncoderClassifierConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: EncoderClassifierConfig) -> None:
        super().__init__(config)
        values = dict(config.backbone)
        kind = values.pop("model_type", "")
        whole = AutoModel.from_config(AutoConfig.for_model(kind, **values))
        encoder: Any
        self.family, encoder = find_backbone(whole)
        self.encoder = encoder
        self.main_input_name = encoder.main_input_name
        self.projector = nn.Linear(encoder.config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    @classmethod
    def of(cls, model: PreTrainedModel, **labels: Any) -> EncoderForAudioClassification:
        """A new head on a copy of the encoder within `model`.

        Args:
            labels: `id2label` and `label2id`.

        Raises:
            ValueError: `model` holds no supported encoder.
        """
        _, encoder = find_backbone(model)
        made = cls(EncoderClassifierConfig(backbone=model.config.to_dict(), **labels))
        made.encoder.load_state_dict(encoder.state_dict())
        return made.to(model.dtype)

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits of a batch.

        Shape: input_values [batch, samples] or input_features [batch, frames, bins], as the
        encoder takes them; attention_mask of the same length -> logits [batch, labels].
        """
        inputs = input_values if input_features is None else input_features
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        encoded = self.encoder(**{self.main_input_name: inputs}, **kwargs)
        hidden = self.projector(encoded[0])
        pooled = hidden.mean(1)
        if attention_mask is not None:
            frames = self.family.frame_lengths(self.encoder, attention_mask.long().sum(-1))
            if frames is not None:
                valid = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
                weight = valid.unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * weight).sum(1) / weight.sum(1)
        return SequenceClassifierOutput(
            logits=self.classifier(pooled), hidden_states=encoded.get("hidden_states")
        )
