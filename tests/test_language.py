"""Languages as people name them, for transcription and for a training with a decoder."""

from __future__ import annotations

import doctest
import shutil
from types import SimpleNamespace

import pytest
import tiny
import transformers

from sounding.data.folder import load_folder
from sounding.data.language import known_languages, language_code
from sounding.model.wrapping import wrap
from sounding.registry import METHODS
from sounding.runs import predict
from sounding.runs.config import TrainConfig
from sounding.tasks import decoder
from sounding.training import loop as train
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
    model.generation_config._from_model_config = False  # or else it is made anew when it is read
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


@pytest.mark.parametrize(("given", "code"), [("German", "de"), ("EN", "en"), ("fr-CA", "fr")])
def test_a_training_takes_the_same_names(monkeypatch, given, code):
    made = Tokenizer()
    monkeypatch.setattr(decoder, "resolve", str)
    monkeypatch.setattr(decoder.AutoTokenizer, "from_pretrained", lambda *_, **__: made)
    decoder.Decoder.make_tokenizer(TrainConfig(language=given), None, None)
    assert made.language == code
    with pytest.raises(ValueError, match="language 'Klingon' is not one"):
        decoder.Decoder.make_tokenizer(TrainConfig(language="Klingon"), None, None)


@pytest.mark.parametrize(
    ("settings", "good", "bad"),
    [(MANY, "German", "fr"), (ENGLISH, "English", "de"), ({}, "Klingon", None)],
)
def test_a_training_in_a_language_that_the_model_does_not_know_is_refused(settings, good, bad):
    says = SimpleNamespace(**settings)
    decoder.Decoder(settings=TrainConfig(language=good)).language(says)
    if bad is not None:
        task = decoder.Decoder(settings=TrainConfig(language=bad))
        with pytest.raises(ValueError, match=f"language '{bad}' is not one of this model's"):
            task.language(says)


def test_a_training_is_refused_before_its_first_step(tmp_path, tones):
    """By the whole way: the backbone says that it knows English alone."""
    speaker(tmp_path / "backbone", ENGLISH)
    texts = shutil.copytree(tones, tmp_path / "texts")
    metadata = texts / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("file_name,label", "file_name,text"))
    settings = {"backbone": str(tmp_path / "backbone"), "task": "decoder"}
    config = TrainConfig(**settings, language="German")
    with pytest.raises(ValueError, match="language 'German' is not one of this model's: en"):
        train.train(config, load_folder(texts), tmp_path / "run")


def test_a_run_answers_in_the_language_that_it_was_trained_in(monkeypatch):
    asked = []

    class Task(decoder.Decoder):
        def spell(self, sequences):
            return ["a"]

    def generate(**settings):
        asked.append(settings["language"])
        return {"sequences": SimpleNamespace(tolist=list), "executed_layers": None}

    dynamic = SimpleNamespace(
        generation_config=SimpleNamespace(**MANY), generate=generate, num_layers=4
    )
    config = TrainConfig(language="German")
    task = Task(settings=config)
    run = SimpleNamespace(task=task, dynamic=dynamic, config=config, method=METHODS["full"])
    predict.predict(run, {}, 4)
    assert asked == ["de"]


def test_the_examples_of_the_formats_run():
    assert doctest.testmod(formats).failed == 0
