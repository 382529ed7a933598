"""Languages as people name them, for transcription and for a training with a decoder."""

from __future__ import annotations

import doctest
from types import SimpleNamespace

import pytest
import tiny
import transformers

from sounding.core.model import wrap
from sounding.data.language import known_languages, language_code
from sounding.evaluation import predict
from sounding.training import train
from sounding.training.config import TrainConfig
from sounding.transcribe import formats
from sounding.transcribe.whisper import WhisperRecognizer

MANY = {"lang_to_id": {"<|en|>": 5, "<|de|>": 6, "<|zh|>": 7}, "is_multilingual": True}
ENGLISH = {"is_multilingual": False}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"), ("EN", "en"), ("English", "en"), (" english ", "en"), ("en-US", "en"),
        ("en_GB.UTF-8", "en"), ("German", "de"), ("de-CH", "de"), ("zh-Hans", "zh"),
        ("Mandarin", "zh"),
    ],
)  # fmt: skip
def test_a_language_is_its_code_or_its_name_in_any_case(given, code):
    assert language_code(given, ["de", "en", "zh"]) == code


@pytest.mark.parametrize("given", ["fr", "French", "", "xx", "e", "deutsch", "-"])
def test_a_language_that_the_model_does_not_know(given):
    with pytest.raises(ValueError, match=r"is not one of this model's: de, en$"):
        language_code(given, ["en", "de"])


def test_what_a_model_says_that_it_knows():
    assert known_languages(SimpleNamespace(**MANY)) == ["de", "en", "zh"]
    assert known_languages(SimpleNamespace(**ENGLISH)) == ["en"]
    assert known_languages(SimpleNamespace()) == []


def speaker(path, settings):
    tiny.save_speaker(path)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(path)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(path)
    return wrap(model, "first"), extractor, transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("given", ["de", "DE", "German"])
def test_texts_of_one_language_are_of_the_same_settings_however_it_is_named(tmp_path, given):
    recognizer = WhisperRecognizer(*speaker(tmp_path, MANY), language=given)
    assert recognizer.settings["language"] == "de"


def test_an_english_model_takes_english_and_nothing_else(tmp_path):
    parts = speaker(tmp_path, ENGLISH)
    for given in (None, "en", "English"):  # with what was transcribed without the option
        assert WhisperRecognizer(*parts, language=given).settings["language"] is None
    with pytest.raises(ValueError, match="'de' is not one of this model's: en: take a model of"):
        WhisperRecognizer(*parts, language="de")


class Tokenizer:
    def set_prefix_tokens(self, language, task, predict_timestamps):
        self.language = language


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [(MANY, "German", "de"), (MANY, "EN", "en"), (ENGLISH, "English", "en"), (None, "fr-CA", "fr")],
)
def test_a_training_takes_the_same_names(tmp_path, monkeypatch, settings, given, expected):
    made = Tokenizer()
    monkeypatch.setattr(train, "resolve", str)
    monkeypatch.setattr(train.AutoTokenizer, "from_pretrained", lambda path: made)
    if settings is not None:
        transformers.GenerationConfig(**settings).save_pretrained(tmp_path)
    train._decoder_tokenizer(TrainConfig(backbone=str(tmp_path), language=given))
    assert made.language == expected


@pytest.mark.parametrize(
    ("settings", "given"), [(MANY, "fr"), (ENGLISH, "de"), (MANY, "Klingon"), (None, "Klingon")]
)
def test_a_training_in_a_language_that_the_model_does_not_know(
    tmp_path, monkeypatch, settings, given
):
    monkeypatch.setattr(train, "resolve", str)
    monkeypatch.setattr(train.AutoTokenizer, "from_pretrained", lambda path: Tokenizer())
    if settings is not None:
        transformers.GenerationConfig(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"language '{given}' is not one of this model's"):
        train._decoder_tokenizer(TrainConfig(backbone=str(tmp_path), language=given))


def test_a_run_answers_in_the_language_that_it_was_trained_in(monkeypatch):
    asked = []

    class Task(predict.Dictation):
        def __init__(self):
            pass

        def decode(self, sequences):
            return ["a"]

    def generate(**settings):
        asked.append(settings["language"])
        return {"sequences": SimpleNamespace(tolist=list), "executed_layers": None}

    dynamic = SimpleNamespace(
        generation_config=SimpleNamespace(**MANY), generate=generate, num_layers=4
    )
    config = TrainConfig(language="German")
    predict.say(SimpleNamespace(task=Task(), dynamic=dynamic, config=config), {}, 4)
    assert asked == ["de"]


def test_the_examples_of_the_formats_run():
    assert doctest.testmod(formats).failed == 0
