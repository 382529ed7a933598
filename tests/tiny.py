"""Small random models of every supported family, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from sounding.model.heads import (
    EncoderClassifierConfig,
    EncoderCTCConfig,
    EncoderForAudioClassification,
    EncoderForCTC,
)

W2V = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 3), "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 12,
    "num_feat_extract_layers": 3, "classifier_proj_size": 16, "num_labels": 5,
    "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
MASKING = {  # the default of `transformers`
    "mask_time_prob": 0.05, "mask_feature_prob": 0.05, "mask_feature_length": 4, "layerdrop": 0.1,
    "apply_spec_augment": True, "hidden_dropout": 0.1, "attention_dropout": 0.1,
    "feat_proj_dropout": 0.1, "activation_dropout": 0.1,
}  # fmt: skip
POST = {**W2V, "feat_extract_norm": "group", "do_stable_layer_norm": False}
PRE = {**W2V, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 16,
    "max_source_positions": 60, "max_target_positions": 20, "vocab_size": 40, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "classifier_proj_size": 16,
    "num_labels": 5,
}  # fmt: skip
MOONSHINE = {
    "hidden_size": 32, "intermediate_size": 48, "encoder_num_hidden_layers": 4,
    "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "vocab_size": 40,
    "decoder_num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
    "decoder_start_token_id": 1,
}  # fmt: skip
BERT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "feature_projection_input_dim": 20, "vocab_size": 12, "num_labels": 5, "layerdrop": 0.0,
    "classifier_proj_size": 16, "mask_time_prob": 0.0, "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 8, "right_max_position_embeddings": 4,
}  # fmt: skip
AST = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "max_length": 64, "num_mel_bins": 32, "num_labels": 5,
}  # fmt: skip
PARAKEET = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48,
    "num_mel_bins": 32, "subsampling_conv_channels": 8, "conv_kernel_size": 5, "layerdrop": 0.0,
}  # fmt: skip


def classifier(**values) -> EncoderClassifierConfig:
    """Of our own head on a tiny Moonshine."""
    return EncoderClassifierConfig(
        backbone={"model_type": "moonshine", **values}, classifier_proj_size=16, num_labels=5
    )


def ctc(kind: str):
    """Configuration class of our own CTC head on a tiny encoder."""
    return lambda **values: EncoderCTCConfig(backbone={"model_type": kind, **values}, vocab_size=12)


# name -> (model class, config class, config values)
MODELS = {
    "wav2vec2-post": (t.Wav2Vec2ForSequenceClassification, t.Wav2Vec2Config, POST),
    "wav2vec2-pre": (t.Wav2Vec2ForCTC, t.Wav2Vec2Config, PRE),
    "wav2vec2-base-model": (t.Wav2Vec2Model, t.Wav2Vec2Config, POST),
    "hubert-post": (t.HubertForCTC, t.HubertConfig, POST),
    "hubert-pre": (t.HubertForSequenceClassification, t.HubertConfig, PRE),
    "wavlm-post": (t.WavLMForSequenceClassification, t.WavLMConfig, POST),
    "wavlm-pre": (t.WavLMForCTC, t.WavLMConfig, PRE),
    "data2vec-audio": (
        t.Data2VecAudioForSequenceClassification,
        t.Data2VecAudioConfig,
        {**W2V, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7},
    ),
    "unispeech-sat-post": (t.UniSpeechSatForSequenceClassification, t.UniSpeechSatConfig, POST),
    "unispeech-sat-pre": (t.UniSpeechSatForCTC, t.UniSpeechSatConfig, PRE),
    "wav2vec2-bert-rotary": (
        t.Wav2Vec2BertForSequenceClassification,
        t.Wav2Vec2BertConfig,
        {**BERT, "position_embeddings_type": "rotary"},
    ),
    "wav2vec2-bert-relative": (
        t.Wav2Vec2BertForCTC,
        t.Wav2Vec2BertConfig,
        {**BERT, "position_embeddings_type": "relative"},
    ),
    "wav2vec2-bert-key": (
        t.Wav2Vec2BertModel,
        t.Wav2Vec2BertConfig,
        {**BERT, "position_embeddings_type": "relative_key"},
    ),
    "whisper-classification": (t.WhisperForAudioClassification, t.WhisperConfig, WHISPER),
    "whisper-generation": (t.WhisperForConditionalGeneration, t.WhisperConfig, WHISPER),
    "moonshine-generation": (t.MoonshineForConditionalGeneration, t.MoonshineConfig, MOONSHINE),
    "moonshine-model": (t.MoonshineModel, t.MoonshineConfig, MOONSHINE),
    "moonshine-classification": (EncoderForAudioClassification, classifier, MOONSHINE),
    "moonshine-ctc": (EncoderForCTC, ctc("moonshine"), MOONSHINE),
    "whisper-ctc": (EncoderForCTC, ctc("whisper"), WHISPER),
    "ast": (t.ASTForAudioClassification, t.ASTConfig, AST),
    "parakeet-encoder": (t.ParakeetEncoder, t.ParakeetEncoderConfig, PARAKEET),
    "parakeet-ctc": (
        t.ParakeetForCTC,
        t.ParakeetCTCConfig,
        {"vocab_size": 12, "pad_token_id": 0, "encoder_config": PARAKEET},
    ),
}

CUT = {  # how a configuration says its number of encoder layers
    "whisper": "encoder_layers",
    "moonshine": "encoder_num_hidden_layers",
}


def make(name: str, seed: int = 0, **changes):
    """A model of `MODELS`, in eval mode, with weights spread enough for layers to matter."""
    torch.manual_seed(seed)
    model_class, config_class, values = MODELS[name]
    model = model_class(config_class(**{**values, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_speaker(path: Path) -> None:
    """A tiny Whisper with its decoder, and a tokenizer of some characters, as a local backbone."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *sorted(set("lowhig"))]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(path)
    model = make("whisper-generation", max_target_positions=24)
    model.generation_config.max_length = 20
    model.save_pretrained(path)
    t.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(path)


def needs_decoder(model) -> bool:
    return (
        hasattr(model, "get_decoder")
        and "ForAudio" not in type(model).__name__
        and ("Moonshine" in type(model).__name__ or "ConditionalGeneration" in type(model).__name__)
    )


def inputs(model, batch: int = 3, seed: int = 1, lengths=None) -> dict[str, torch.Tensor]:
    """Inputs of one length, or padded on the right with an attention mask when `lengths` is given.

    The padding is not zero, so that a leak shows.
    """
    torch.manual_seed(seed)
    name = type(getattr(model, "encoder", model)).__name__ + type(model).__name__
    if "AST" in name:
        made = {"input_values": torch.randn(batch, 64, 32)}
    elif "Whisper" in name:
        frames = max(lengths) if lengths else 120
        made = {"input_features": torch.randn(batch, 16, frames)}
    elif "Bert" in name:
        made = {"input_features": torch.randn(batch, max(lengths) if lengths else 24, 20)}
    elif "Parakeet" in name:
        made = {"input_features": torch.randn(batch, max(lengths) if lengths else 96, 32)}
    else:
        made = {"input_values": torch.randn(batch, max(lengths) if lengths else 4000)}
    if lengths:
        size = max(lengths)
        made["attention_mask"] = (torch.arange(size) < torch.tensor(lengths)[:, None]).long()
    if needs_decoder(model):
        made["decoder_input_ids"] = torch.randint(3, 40, (batch, 4))
    return made
