"""Recognition by CTC: heads, losses, texts, and every method on a small folder of texts."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers as t
from conftest import TEXTS
from torch.nn.functional import ctc_loss

import sounding
from sounding.cli.app import main
from sounding.data.audio import read_audio
from sounding.data.folder import load_folder
from sounding.data.text import build_tokenizer, collapse, normalize_text, tokens_of, word_errors
from sounding.evaluation.classify import classify
from sounding.evaluation.sweep import sweep
from sounding.model.heads import EncoderCTCConfig, EncoderForCTC
from sounding.policies.confidence import confidence
from sounding.policies.masks import every_mask
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.mask_outputs import mask_outputs
from sounding.runs.run import load_run, new_run
from sounding.study.compare import StudyConfig, compare
from sounding.tasks.base import Target
from sounding.tasks.ctc import CTC
from sounding.tasks.decoder import Decoder
from sounding.tasks.one_class import OneClass
from sounding.training.checkpoint import TrainState
from sounding.training.loop import train
from sounding.transcribe.trained import RunRecognizer

NAMES = ("whisper-ctc", "moonshine-ctc", "wav2vec2-pre", "hubert-post", "wavlm-pre", "parakeet-ctc")


@pytest.fixture(scope="module")
def config(whisper):
    return TrainConfig(backbone=str(whisper), epochs=0.7, batch_size=8, precision="fp32")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(config, texts, root):
    """A finished run of each method, in the directory of its name."""
    folder, made = load_folder(texts), {}
    for method in ("full", *(m for m in METHODS if m != "full")):
        teacher = str(root / "full") if method == "dld" else ""
        made[method] = train(replace(config, method=method, teacher=teacher), folder, root / method)
    return made


# --- texts ----------------------------------------------------------------------------------


def test_characters_and_pieces_give_every_training_text_back():
    said = [
        normalize_text(one)
        for one in [*TEXTS, "it's a DOG's life", "the low, the high; the dog"] * 9
    ]
    characters = build_tokenizer(said)
    assert tokens_of(characters)[:3] == ["<pad>", "<unk>", "▁"]
    assert len(characters) == 3 + len({c for one in said for c in one if c != " "})
    pieces = build_tokenizer(said, "24")
    assert len(pieces) <= 24
    assert any(len(token) > 2 for token in tokens_of(pieces)[2:])
    for tokenizer in (characters, pieces):
        task = CTC(tokenizer=tokenizer)
        assert task.spell([tokenizer(one)["input_ids"] for one in said]) == said
        assert tokens_of(build_tokenizer(said, "24")) == tokens_of(pieces)
    assert characters("low z")["input_ids"][-1] == 1  # a character that training did not have
    for wrong in ("many", "3"):
        with pytest.raises(ValueError, match="a number of tokens from"):
            build_tokenizer(said, wrong)
    with pytest.raises(ValueError, match="all are empty"):
        build_tokenizer(["", normalize_text("!?")])


def test_collapse_of_a_path():
    assert collapse([]) == []
    assert collapse([0, 0]) == []
    assert collapse([3, 3, 3]) == [3]
    assert collapse([3, 0, 3, 4, 4, 3]) == [3, 3, 4, 3]


# --- losses ---------------------------------------------------------------------------------


def test_losses_and_errors_of_a_padded_batch_are_those_of_each_clip_alone():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["low high"])
    task = CTC(tokenizer=tokenizer)
    targets = [Target(tuple(tokenizer(one)["input_ids"]), one) for one in ("low", "high low")]
    logits = 3 * torch.randn(2, 2, 30, len(tokenizer))
    frames = torch.tensor([14, 30])
    valid = torch.arange(30) < frames[:, None]
    losses = task.losses(logits, valid, targets)
    errors = task.errors(logits, valid, targets)
    distances = task.distances(logits, logits[1], valid, targets)
    assert losses.shape == errors.shape == distances.shape == (2, 2)
    assert distances[1].abs().max() < 1e-5
    assert distances[0].min() > 0
    for row, target in enumerate(targets):
        own = logits[:, row : row + 1, : frames[row]]
        torch.testing.assert_close(task.losses(own, None, [target])[:, 0], losses[:, row])
        torch.testing.assert_close(task.errors(own, None, [target])[:, 0], errors[:, row])
        alone = task.distances(own, own[1], None, [target])[:, 0]
        torch.testing.assert_close(alone, distances[:, row])
        plainly = ctc_loss(
            own[0].transpose(0, 1).log_softmax(-1), torch.tensor([target.ids]),
            frames[row : row + 1], torch.tensor([len(target.ids)]),
        )  # fmt: skip
        torch.testing.assert_close(losses[0, row], plainly)


def test_a_batch_of_empty_texts_learns_that_nothing_is_said():
    task = CTC(tokenizer=build_tokenizer(["low high"]))
    logits = torch.randn(2, 1, 7, len(task.tokenizer), requires_grad=True)
    losses = task.losses(logits, None, [Target((), "")])
    expected = -logits.log_softmax(-1)[..., 0].sum(-1)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert logits.grad.isfinite().all()


def test_a_text_too_long_for_its_clip_teaches_nothing_and_breaks_nothing():
    tokenizer = build_tokenizer(["low high"])
    target = Target(tuple(tokenizer("low high low")["input_ids"]), "low high low")
    logits = torch.randn(1, 1, 3, len(tokenizer), requires_grad=True)
    loss = CTC(tokenizer=tokenizer).losses(logits, None, [target])
    loss.sum().backward()
    assert loss.item() == 0
    assert not logits.grad.any()


# --- heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_full_depth_is_that_of_the_plain_model_and_exits_answer_each_frame_below(name):
    plain_model = tiny.make(name)
    dynamic = sounding.wrap(tiny.make(name), exits=True)
    batch = tiny.inputs(plain_model)
    logits = dynamic(**batch).logits
    if "whisper" not in name:  # which takes no clip below 30 s without us
        assert logits.equal(plain_model(**batch).logits)
    masks = every_mask(4)
    found = dynamic.forward_masks(batch, masks)
    assert found.logits.shape == (15, *logits.shape)
    states, _ = dynamic.layer_outputs(batch)
    for mask, expected in zip(masks, found.logits, strict=True):
        assert dynamic(**batch, mask=mask).logits.equal(expected)
    for k in (1, 2, 3):
        state, frame_mask = states[k - 1]
        torch.testing.assert_close(
            dynamic(**batch, mask=torch.arange(4) < k).logits, dynamic.exits(state, frame_mask, k)
        )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_reaches_no_valid_frame(name):
    dynamic = sounding.wrap(tiny.make(name), exits=True)
    lengths = [4000, 2500, 3100] if "input_values" in tiny.inputs(dynamic.model) else [96, 60, 79]
    batch = tiny.inputs(dynamic.model, lengths=lengths)
    budgets = [2, 4, 1]
    out = dynamic(**batch, budget=budgets)
    valid = dynamic.frame_mask(batch, out.logits.shape[1])
    for row, length in enumerate(lengths):
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        time = 2 if "whisper" in name else 1
        key = dynamic.model.main_input_name
        alone[key] = alone[key].narrow(time, 0, length)
        alone.pop("attention_mask")
        one = dynamic(**alone, budget=budgets[row])
        assert one.executed_layers.equal(out.executed_layers[row : row + 1])
        frames = int(valid[row].sum())
        assert one.logits.shape[1] == frames
        torch.testing.assert_close(out.logits[row, :frames], one.logits[0], rtol=1e-3, atol=1e-3)
        sure = confidence(out.logits, valid)[row]
        torch.testing.assert_close(sure, confidence(one.logits)[0], rtol=1e-3, atol=1e-3)


def test_our_ctc_head_is_saved_and_loaded_with_its_exits(tmp_path):
    model = EncoderForCTC.of(tiny.make("moonshine-model"), vocab_size=9).eval()
    dynamic = sounding.wrap(model, exits=True)
    batch = tiny.inputs(model)
    dynamic.save_pretrained(tmp_path)
    again = sounding.load(tmp_path)
    with torch.no_grad():
        for k in (1, 4):
            assert again(**batch, budget=k).logits.equal(dynamic(**batch, budget=k).logits)
    assert type(again.model.config) is EncoderCTCConfig
    assert sounding.unwrap(dynamic) is model


# --- runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_recognizes_and_answers_alike_after_loading(method, runs, root, texts):
    run, folder = runs[method], load_folder(texts)
    again = load_run(root / method)
    clips = folder.split("test")
    features = run.read(clips, "read")
    batch = run.collate(features)
    assert run.labels[0] == "<pad>"
    assert again.labels == run.labels
    with torch.no_grad():
        for k in (1, 4):
            out = run.dynamic(**batch, budget=k)
            assert out.logits.shape[-1] == len(run.labels)
            assert again.dynamic(**batch, budget=k).logits.equal(out.logits)
            texts_together = run.task.decode(out.logits, run.frame_mask(batch, out.logits))
            alone = [
                run.task.decode(run.dynamic(**run.collate([one]), budget=k).logits, None)[0]
                for one in features
            ]
            assert texts_together == alone


def test_a_training_goes_on_from_the_model_of_a_run_with_its_head(config, runs, root, texts):
    again = replace(config, backbone=str(root / "full" / "model"), method="random")
    start = runs["full"].dynamic.model
    made = new_run(again, runs["full"].labels, {"task": "text"}, runs["full"].tokenizer)
    for name, value in start.state_dict().items():
        assert made.dynamic.model.state_dict()[name].equal(value), name
    other = new_run(again, [*runs["full"].labels, "z"], {"task": "text"}, runs["full"].tokenizer)
    assert other.dynamic.model.lm_head.out_features == len(runs["full"].labels) + 1
    with pytest.raises(ValueError, match="EncoderForCTC, which this task cannot go on from"):
        new_run(again, ["a", "b"], {})


@pytest.mark.parametrize(("labels", "given", "rate"), [
    (None, None, 1e-2), (["a", "b"], None, 1e-3), (None, 0.5, 0.5), (["a", "b"], 0.5, 0.5),
])  # fmt: skip
def test_a_new_head_of_ctc_learns_faster_than_one_of_classes(config, runs, labels, given, rate):
    full = runs["full"]
    own = replace(config, method="early-exit", lr_head=given)
    tokenizer = None if labels else full.tokenizer
    info = {"task": "classification" if labels else "text"}
    run = new_run(own, labels or full.labels, info, tokenizer)
    groups = TrainState(run, total=1).optimizer.param_groups
    rates = {id(p): group["peak_lr"] for group in groups for p in group["params"]}
    assert {rates[id(p)] for p in run.dynamic.exits.parameters()} == {rate}
    assert {rates[id(p)] for p in run.dynamic.stack.parameters()} == {own.lr_encoder}


def test_a_sweep_has_word_error_rates(runs, texts):
    folder = load_folder(texts)
    run = runs["input"]
    result = sweep([run, runs["early-exit"]], folder, rounds=0)
    assert {row.metric for row in result.rows} == {"wer"}
    clips = folder.split("test")
    targets = run.task.targets(folder, clips)
    words = sum(run.task.weight(target) for target in targets)
    features = run.read(clips, "read")
    for row in result.rows:
        assert 0 <= row.ci_low <= row.value <= row.ci_high
        if row.method == "input":
            count = sum(
                word_errors(target.text, answer.label)
                for target, answer in zip(
                    targets,
                    classify(run, [clip.path for clip in clips], row.kept_layers),
                    strict=True,
                )
            )
            assert row.value == pytest.approx(count / words)
    found = mask_outputs(run, features, every_mask(4), targets)
    assert found.errors.max() > 0
    full = runs["full"]
    with pytest.raises(ValueError, match="which the full run was not trained for"):
        sweep([replace(full, info={**full.info, "task": "classification"})], folder)


def test_a_study_of_texts_has_every_rule_and_word_error_rates(config, texts, tmp_path):
    pytest.importorskip("matplotlib")
    methods = ("full", "random", "early-exit", "static", "input")
    settings = {n: getattr(config, n) for n in ("backbone", "epochs", "batch_size", "precision")}
    study = StudyConfig(settings=settings, variants=methods, seeds=(0,))
    (line,) = compare(study, [texts], tmp_path)
    assert line.startswith("VERDICT")
    measured = json.loads((tmp_path / texts.name / "input-0" / "measured.json").read_text())
    assert measured["metric"] == "wer"
    found = measured["sets"]["test"]
    words = found["clips"]["weight"]
    assert words == [
        len(normalize_text(TEXTS[i % 6]).split()) for i in map(_index, found["clips"]["file"])
    ]
    rows = {(row["rule"], row["budget"]): row["errors"][0] for row in found["rows"]}
    for k in (1, 2, 3):
        for rule in ("exact", "static", "shuffled", "constant"):
            assert all(a <= b for a, b in zip(rows["oracle", k], rows[rule, k], strict=True))
    assert "Word error rate" in (tmp_path / "report.html").read_text()


def _index(name):
    return int("".join(c for c in name if c.isdigit()))


# --- the model's own decoder ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "random", "static", "input", "early-exit", "i3d"])
def test_a_decoder_is_trained_at_every_depth_and_says_the_same_alone(
    method, speaker, texts, tmp_path
):
    config = TrainConfig(
        backbone=str(speaker), method=method, task="decoder", epochs=0.7, batch_size=8,
        max_seconds=0.9, precision="fp32",
    )  # fmt: skip
    folder = load_folder(texts)
    run = train(config, folder, tmp_path / "run")
    assert run.dynamic.exits is None
    result = sweep([load_run(tmp_path / "run")], folder, rounds=1)
    assert {row.metric for row in result.rows} == {"wer"}
    clips = folder.split("test")
    targets = run.task.targets(folder, clips)
    errors = 0
    for clip, target in zip(clips, targets, strict=True):
        (answer,) = classify(run, [clip.path], 4, max_seconds=0.9)
        assert answer.probability is None
        assert len(answer.executed_layers) == 4
        errors += word_errors(target.text, answer.label)
    row = next(r for r in result.rows if r.kept_layers == 4 and r.method == method)
    assert row.value == pytest.approx(errors / sum(run.task.weight(target) for target in targets))


def test_a_decoder_learns_the_tokens_after_its_prompt_and_padding_does_not_count(speaker):
    torch.manual_seed(0)
    task = Decoder(tokenizer=t.AutoTokenizer.from_pretrained(speaker))
    assert task.prompt == 1
    targets = [
        Target(tuple(task.tokenizer(one)["input_ids"]), one) for one in ("low", "high low", "high")
    ]
    ids = task.inputs({}, targets)["decoder_input_ids"]
    assert ids.shape == (3, 9)
    assert ids[:, 0].tolist() == [1, 1, 1]
    logits = torch.randn(2, 3, 9, 40)
    losses, errors = task.losses(logits, None, targets), task.errors(logits, None, targets)
    distances = task.distances(logits, logits[1], None, targets)
    assert distances[1].abs().max() < 1e-5
    for row, target in enumerate(targets):
        own, wanted = logits[0, row, : len(target.ids) - 1], torch.tensor(target.ids[1:])
        torch.testing.assert_close(losses[0, row], torch.nn.functional.cross_entropy(own, wanted))
        assert errors[0, row] == (own.argmax(-1) != wanted).sum()
    assert task.spell([target.ids for target in targets]) == ["low", "high low", "high"]


def test_a_sweep_asks_each_run_in_its_own_tokens_and_none_for_more_than_it_takes(
    runs, speaker, texts, config, tmp_path
):
    folder = load_folder(texts)
    config = replace(config, backbone=str(speaker), method="full", task="decoder")
    run = train(config, folder, tmp_path / "run")
    alone = sweep([run], folder, rounds=0).rows
    both = sweep([runs["static"], run], folder, rounds=0).rows
    assert [row for row in both if row.method != "static"] == alone
    clips = [replace(c, target="high " * 9) if c.split == "test" else c for c in folder.clips]
    long = replace(folder, clips=tuple(clips))  # 46 tokens, of the 24 that the decoder takes
    for row in sweep([run], long, rounds=0).rows:
        assert 0.5 < row.value <= 2


def test_a_study_of_decoders_is_refused(config, texts, tmp_path):
    settings = {"backbone": config.backbone, "task": "decoder"}
    with pytest.raises(ValueError, match="which task 'decoder' does not give"):
        compare(StudyConfig(settings=settings), [texts], tmp_path)


def test_command_line_recognizes(runs, root, texts, capsys):
    clip = texts / "test0.wav"
    assert main(["run", str(root / "input"), str(clip), "--budget", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kept_layers"] == 2
    (again,) = classify(runs["input"], [clip], 2)
    assert answer["label"] == again.label
    pytest.importorskip("flashlight.lib.text")
    assert main(["run", str(root / "input"), str(clip), "--budget", "2", "--beam", "9"]) == 0
    assert "layers" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [2, "50%", "mean:2", None])
def test_a_run_recognizes_pieces_of_long_audio(runs, root, texts, budget):
    clips = load_folder(texts).split("test")
    recognizer = RunRecognizer(runs["input"], root / "input")
    pieces = [read_audio(clip.path, rate=recognizer.sampling_rate) for clip in clips]
    heard = recognizer(pieces, budget)
    expected = classify(runs["input"], [clip.path for clip in clips], budget)
    for one, answer in zip(heard, expected, strict=True):
        assert (one.text, list(one.executed_layers)) == (answer.label, answer.executed_layers)
    assert recognizer(pieces[:1], budget) == heard[:1]
    assert recognizer.settings["decoding"] == "greedy"


def test_transcribing_by_a_run_on_the_command_line(runs, root, texts, tmp_path, capsys):
    pytest.importorskip("silero_vad")
    clip = str(texts / "test0.wav")  # tones, so nobody speaks
    assert main(["transcribe", clip, "--run", str(root / "input"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "test0.txt").read_text() == ""
    for more, message in (
        (["--run", str(root / "input"), "--language", "en"], "do not go with --run"),
        (["--beam", "5"], "are for a --run"),
    ):
        assert main(["transcribe", clip, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="tells classes"):
        RunRecognizer(SimpleNamespace(task=OneClass(["low"])), "run")


def test_what_cannot_recognize_is_said(texts, tmp_path):
    tiny.make("ast").save_pretrained(tmp_path / "ast")
    t.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path / "ast")
    config = TrainConfig(backbone=str(tmp_path / "ast"))
    with pytest.raises(ValueError, match="has no frames in time"):
        train(config, load_folder(texts), tmp_path / "run")
    tiny.make("wav2vec2-pre", add_adapter=True).save_pretrained(tmp_path / "adapted")
    config = replace(config, backbone=str(tmp_path / "adapted"))
    with pytest.raises(ValueError, match="has an adapter"):
        train(config, load_folder(texts), tmp_path / "run2")
