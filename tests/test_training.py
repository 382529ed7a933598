"""Training: the same weights after any interruption, on every family, by every method."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch
import transformers as t
from interrupt import stop_and_go_on, weights
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import sounding
from sounding.data.features import clip_seconds
from sounding.data.folder import load_folder
from sounding.data.text import build_tokenizer, tokens_of
from sounding.methods.base import Step
from sounding.methods.choice import _losses
from sounding.model.dynamic import MaskLogits
from sounding.model.updates import add_updates
from sounding.policies.masks import random_masks
from sounding.policies.static import depth_prior
from sounding.progress import Interrupted
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.randomness import seeded
from sounding.runs.run import Run, load_run, new_run
from sounding.tasks.base import Target
from sounding.training import checkpoint, loader, steps
from sounding.training import loop as module
from sounding.training.loop import train


@pytest.fixture
def config(whisper):
    return TrainConfig(backbone=str(whisper), epochs=2, batch_size=8, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def teacher(whisper, tones, tmp_path_factory):
    """A finished run at full depth."""
    config = TrainConfig(backbone=str(whisper), method="full", epochs=1, batch_size=8)
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(config, load_folder(tones), out)
    return str(out)


def steps_in(config, lengths):
    """Steps of a whole training on clips of these lengths."""
    return loader.Order(lengths, config).total


@pytest.mark.parametrize("method", METHODS)
def test_a_training_stopped_at_any_step_ends_with_the_same_weights(
    config, tones, tmp_path, method, teacher
):
    config = replace(config, method=method, teacher=teacher if method == "dld" else "")
    folder = load_folder(tones)
    train(config, folder, tmp_path / "whole")
    for stop in (1, 4, 9):
        stop_and_go_on(config, folder, tmp_path / f"at{stop}", stop)
        assert weights(tmp_path / f"at{stop}") == weights(tmp_path / "whole")
        log = (tmp_path / f"at{stop}" / "log.csv").read_text()
        assert log == (tmp_path / "whole" / "log.csv").read_text()


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("method", ["input", "i3d"])
def test_what_transformers_draws_in_a_step_follows_from_seed_and_step_too(
    config, tones, tmp_path, masking, method, masks
):
    folder = load_folder(tones)
    config = replace(config, backbone=str(masking), method=method, backbone_masking=masks)
    for seed, name in enumerate(("whole", "again")):
        np.random.seed(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        train(config, folder, tmp_path / name)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    for stop in (1, 4, 9):
        stop_and_go_on(config, folder, tmp_path / f"at{stop}", stop)
        assert weights(tmp_path / f"at{stop}") == weights(tmp_path / "whole")
        log = (tmp_path / f"at{stop}" / "log.csv").read_text()
        assert log == (tmp_path / "whole" / "log.csv").read_text()


def test_a_backbone_masks_only_where_asked_and_keeps_its_configuration(
    config, tones, tmp_path, masking, monkeypatch
):
    drawn = []
    real = t.models.wav2vec2.modeling_wav2vec2._compute_mask_indices
    monkeypatch.setattr(
        t.models.wav2vec2.modeling_wav2vec2,
        "_compute_mask_indices",
        lambda *args, **kwargs: [drawn.append(0), real(*args, **kwargs)][1],
    )
    config = replace(config, backbone=str(masking), method="full", epochs=0.4)
    for masks in (False, True):
        run = train(
            replace(config, backbone_masking=masks), load_folder(tones), tmp_path / f"{masks}"
        )
        assert bool(drawn) is masks
        assert run.dynamic.config.apply_spec_augment is True
        saved = t.AutoConfig.from_pretrained(tmp_path / f"{masks}" / "model")
        for name in ("mask_time_prob", "mask_feature_prob", "apply_spec_augment", "layerdrop"):
            assert getattr(saved, name) == tiny.MASKING[name], name


def test_a_training_leaves_the_random_numbers_of_its_caller_as_they_were(config, tones, tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draw()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    config = replace(config, epochs=0.4)
    train(config, load_folder(tones), tmp_path / "run")
    assert draw() == expected


def test_a_very_large_seed_is_a_seed(config, tones, tmp_path):
    train(replace(config, epochs=0.2, seed=2**32 - 1), load_folder(tones), tmp_path / "run")
    assert load_run(tmp_path / "run").config.seed == 2**32 - 1


def test_clips_shorter_than_a_mask_are_trained_on_with_the_masking_of_the_backbone(
    config, tmp_path, masking
):
    data = tmp_path / "short"
    data.mkdir()
    rows = ["file_name,label,split"]
    for index in range(16):  # of 0.15 s, which are 7 frames; a mask has 10
        tone = 0.1 * np.sin(2 * np.pi * (300, 2000)[index % 2] * np.arange(2400) / 16000)
        sf.write(data / f"{index}.wav", tone, 16000)
        rows.append(f"{index}.wav,{('low', 'high')[index % 2]},{'train' if index < 12 else 'test'}")
    (data / "metadata.csv").write_text("\n".join(rows))
    front = {
        "conv_dim": (16,) * 7,
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "num_feat_extract_layers": 7,
    }
    model = tiny.make("wav2vec2-pre", **tiny.MASKING, **front, conv_stride=(5, 2, 2, 2, 2, 2, 2))
    model.wav2vec2.save_pretrained(tmp_path / "backbone")
    shutil.copy(masking / "preprocessor_config.json", tmp_path / "backbone")
    config = replace(config, backbone=str(tmp_path / "backbone"), backbone_masking=True)
    train(config, load_folder(data), tmp_path / "run")


def test_batch_norms_stay_as_they_were_pretrained(config, tones, tmp_path):
    """Their statistics would hang on the padding of a batch, and on who shares it."""
    model = tiny.make("parakeet-encoder")
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    model.save_pretrained(tmp_path / "backbone")
    t.ParakeetFeatureExtractor(feature_size=32).save_pretrained(tmp_path / "backbone")
    config = replace(config, backbone=str(tmp_path / "backbone"), epochs=0.4, freeze="none")
    run = train(config, load_folder(tones), tmp_path / "run")
    trained = dict(run.dynamic.base.named_buffers())
    means = [name for name in trained if name.endswith("running_mean")]
    assert means
    for name in means:
        torch.testing.assert_close(trained[name], dict(model.named_buffers())[name])


WEIGHT_NORM = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
DECAY = {  # the parameters with more than one dimension that are no matrices
    "wavlm-post": {
        *(f"encoder.layers.{i}.attention.gru_rel_pos_const" for i in range(4)),
        "encoder.layers.0.attention.rel_attn_embed.weight",
        WEIGHT_NORM,
    },
    "wav2vec2-pre": {WEIGHT_NORM},
    "whisper-classification": {"embed_positions.weight"},
    "ast": {
        f"embeddings.{name}" for name in ("cls_token", "distillation_token", "position_embeddings")
    },
    "parakeet-ctc": {f"layers.{i}.self_attn.bias_{x}" for i in range(4) for x in "uv"},
}


@pytest.mark.parametrize("name", DECAY)
def test_weight_decay_is_for_matrices_only(name):
    dynamic = sounding.wrap(tiny.make(name), skip="adapter", exits=True)
    run = Run(TrainConfig(freeze="none"), dynamic, None, {"labels": ["a", "b"]})
    groups = module.TrainState(run, 1).optimizer.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for part, names in (
        (dynamic.skip, {"down", "up"}),
        (dynamic.policy, {"project.weight", "score.weight"}),
    ):
        assert {n for n, p in part.named_parameters() if id(p) in decayed} == names
    every = dict(dynamic.base.named_parameters())
    assert DECAY[name] == {n for n, p in every.items() if p.ndim > 1 and id(p) not in decayed}
    assert not any(p.ndim == 1 for p in every.values() if id(p) in decayed)
    assert all(id(p) in decayed for p in dynamic.exits.parameters() if p.ndim == 2)


def test_a_checkpoint_whose_parameters_are_numbered_is_refused(
    config, tones, tmp_path, monkeypatch
):
    """Those of earlier versions: their numbers may belong to other parameters now."""
    save = checkpoint.save_file

    def numbered(tensors, path, metadata):
        names = [n for n in tensors if n.startswith("optimizer.")]
        made = {f"optimizer.{i}.exp_avg": tensors.pop(n) for i, n in enumerate(names)}
        save({**tensors, **made}, path, metadata=metadata)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", numbered)
    monkeypatch.setattr(checkpoint, "atomic_path", lambda path: nullcontext(path))
    with pytest.raises(KeyboardInterrupt):
        train(config, load_folder(tones), tmp_path / "run")
    with pytest.raises(ValueError, match="remove it to start anew"):
        train(config, load_folder(tones), tmp_path / "run")


CHANGED = {"noise_share": 1.0, "speed_change": 0.1, "mask_share": 0.1}


def test_a_training_of_changed_clips_stopped_at_any_step_ends_with_the_same_weights(
    config, tones, tmp_path
):
    config = replace(config, **CHANGED, skip="adapter", selector_after=1)
    folder = load_folder(tones)
    train(config, folder, tmp_path / "whole")
    train(replace(config, **dict.fromkeys(CHANGED, 0.0)), folder, tmp_path / "clean")
    skip = "model/skip.safetensors"
    for stop in (1, 6):
        stop_and_go_on(config, folder, tmp_path / f"at{stop}", stop)
        assert weights(tmp_path / f"at{stop}") == weights(tmp_path / "whole")
        both = [(tmp_path / name / skip).read_bytes() for name in (f"at{stop}", "whole")]
        assert both[0] == both[1]
        log = (tmp_path / f"at{stop}" / "log.csv").read_text()
        assert log == (tmp_path / "whole" / "log.csv").read_text()
    clean, whole = weights(tmp_path / "clean"), weights(tmp_path / "whole")
    assert all(clean[name] != whole[name] for name in whole)
    assert (tmp_path / "clean" / skip).read_bytes() != (tmp_path / "whole" / skip).read_bytes()


def test_a_training_killed_ten_times_at_random_moments_ends_with_the_same_weights(
    config, tones, tmp_path
):
    config = replace(config, epochs=40)
    train(config, load_folder(tones), tmp_path / "whole")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "import sys, sounding.cli; sys.exit(sounding.cli.main())"]
    command += ["train", "--config", str(tmp_path / "c.yaml"), "--data", str(tones)]
    checkpoint = out / "checkpoint.safetensors"

    def written():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    for _ in range(10):
        before = written()
        process = subprocess.Popen(
            [*command, "--out", str(out)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here: the sums depend on it
        )
        started = time.monotonic()
        while written() == before and time.monotonic() - started < 60:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    train(config, load_folder(tones), out)
    assert weights(out) == weights(tmp_path / "whole")
    assert not list(out.glob(".*.tmp"))


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(config, tones, tmp_path, monkeypatch):
    step = steps.one_step

    def terminate(run, state, *rest):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, state, *rest)

    monkeypatch.setattr(steps, "one_step", terminate)
    slow = replace(config, checkpoint_seconds=1e9)
    with pytest.raises(Interrupted, match="step 4 of 10; the same command goes on"):
        train(slow, load_folder(tones), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    with pytest.raises(ValueError, match="has not finished"):
        load_run(tmp_path / "run")


def test_a_finished_run_is_loaded_not_trained_again(config, tones, tmp_path, monkeypatch):
    folder = load_folder(tones)
    train(config, folder, tmp_path / "run")
    monkeypatch.setattr(module, "Steps", None)
    assert train(config, folder, tmp_path / "run").labels == ["high", "low"]


def test_a_run_with_other_settings_or_other_data_is_not_touched(config, tones, tmp_path):
    folder = load_folder(tones)
    train(config, folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(seed 0 -> 1\)"):
        train(replace(config, seed=1), folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(the data\)"):
        train(config, replace(folder, digest="0" * 64), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files"):
        train(config, folder, tmp_path / "mine")


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_checkpoint_is_refused(config, tones, tmp_path, monkeypatch, damage):
    def interrupted(*args):
        raise KeyboardInterrupt

    save = module.TrainState.save
    folder = load_folder(tones)
    monkeypatch.setattr(module.TrainState, "save", lambda *a: [save(*a), interrupted()])
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"hello" * 99)
    with pytest.raises(ValueError, match="is not a checkpoint of this training"):
        train(config, folder, tmp_path / "run")


def test_damaged_exits_are_refused(config, tones, tmp_path):
    train(replace(config, method="early-exit", epochs=1), load_folder(tones), tmp_path / "run")
    path = tmp_path / "run" / "model" / "exits.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"exits\.safetensors is not the file that was saved"):
        load_run(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_with_advice(config, tones, tmp_path):
    wild = replace(config, lr_head=1e30, lr_encoder=1e30, clip_norm=1e30)
    with pytest.raises(ValueError, match=r"the loss is .* lower lr_encoder or lr_head"):
        train(wild, load_folder(tones), tmp_path / "run")


FAMILIES = {
    "wav2vec2-post": t.Wav2Vec2FeatureExtractor(),
    "hubert-pre": t.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    "wavlm-post": t.Wav2Vec2FeatureExtractor(),
    "data2vec-audio": t.Wav2Vec2FeatureExtractor(),
    "unispeech-sat-post": t.Wav2Vec2FeatureExtractor(),
    "wav2vec2-bert-rotary": t.SeamlessM4TFeatureExtractor(feature_size=10, num_mel_bins=10),
    "ast": t.ASTFeatureExtractor(num_mel_bins=32, max_length=64),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_every_family_with_a_classifier_trains_from_a_local_path(name, tones, tmp_path):
    tiny.make(name).save_pretrained(tmp_path / "backbone")
    FAMILIES[name].save_pretrained(tmp_path / "backbone")
    config = TrainConfig(backbone=str(tmp_path / "backbone"), epochs=0.4, batch_size=8)
    run = train(config, load_folder(tones), tmp_path / "run")
    assert np.isfinite(np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)).all()
    again = load_run(tmp_path / "run")
    assert again.dynamic.num_layers == run.dynamic.num_layers == 4
    assert again.dynamic.config.id2label == {0: "high", 1: "low"}


@pytest.mark.parametrize("name", ["moonshine-model", "parakeet-encoder"])
@pytest.mark.parametrize("method", ["input", "early-exit"])
def test_an_encoder_without_a_classifier_of_its_own_gets_one(name, method, tones, tmp_path):
    tiny.make(name).save_pretrained(tmp_path / "backbone")
    extractor = t.Wav2Vec2FeatureExtractor(do_normalize=False)
    if name == "parakeet-encoder":
        extractor = t.ParakeetFeatureExtractor(feature_size=32)
    extractor.save_pretrained(tmp_path / "backbone")
    config = TrainConfig(
        backbone=str(tmp_path / "backbone"), method=method, epochs=0.4, batch_size=8
    )
    folder = load_folder(tones)
    run = train(config, folder, tmp_path / "run")
    again = load_run(tmp_path / "run")
    batch = again.collate(again.read(folder.split("test")[:3], "read"))
    assert type(again.dynamic.model).__name__ == "EncoderForAudioClassification"
    assert not any("decoder" in key for key, _ in again.dynamic.model.named_parameters())
    for budget in (1, None, "mean:2"):
        with torch.no_grad():
            assert again.dynamic(**batch, budget=budget).logits.equal(
                run.dynamic(**batch, budget=budget).logits
            )
    assert again.dynamic.config.id2label == {0: "high", 1: "low"}


def test_training_learns_and_its_selector_too(config, tones, tmp_path):
    before = sounding.wrap(tiny.make("whisper-classification")).policy.score.weight.clone()
    run = train(replace(config, epochs=8), load_folder(tones), tmp_path / "run")
    losses = np.loadtxt(tmp_path / "run" / "log.csv", delimiter=",", skiprows=1)[:, 1]
    assert losses[-5:].mean() < losses[:5].mean()
    assert not torch.allclose(run.dynamic.policy.score.weight, before, atol=1e-3)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("freeze", ["front-end", "encoder", "none"])
def test_freezing_leaves_just_the_frozen_parts_as_they_were(config, tones, tmp_path, freeze):
    plain = tiny.make("whisper-classification").state_dict()
    run = train(replace(config, freeze=freeze), load_folder(tones), tmp_path / "run")
    after = run.dynamic.model.state_dict()
    same = {n for n in plain if plain[n].shape == after[n].shape and plain[n].equal(after[n])}
    assert ("encoder.conv1.weight" in same) is (freeze != "none")
    assert ("encoder.layers.0.fc1.weight" in same) is (freeze == "encoder")
    assert "projector.weight" not in same


def test_random_masks_keep_exactly_k_and_every_layer_sometimes():
    rng = np.random.default_rng(0)
    masks = random_masks(rng, 200, 4, 2)
    assert masks.sum(1).eq(2).all()
    assert masks.any(0).all()
    assert not masks.all(0).any()
    assert random_masks(rng, 3, 4, [1, 2, 4]).sum(1).tolist() == [1, 2, 4]


def test_full_depth_learns_from_labels_and_the_other_masks_from_its_answers_too(config, tones):
    run = new_run(config, list(load_folder(tones).labels), {})
    logits = torch.randn(5, 4, 2, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0])
    targets = [Target((label,), "") for label in labels.tolist()]
    hard = torch.stack([cross_entropy(one, labels, reduction="none") for one in logits])
    teacher = logits[3].softmax(-1)
    soft = (teacher * (teacher.log() - logits.log_softmax(-1))).sum(-1)
    for distill in (0.0, 0.3, 1.0):
        run.config = replace(config, distill=distill)
        losses = _losses(run, MaskLogits(logits, logits, None), targets)
        expected = (1 - distill) * hard + distill * soft
        torch.testing.assert_close(losses[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
        torch.testing.assert_close(losses[3], hard[3])
    (gradient,) = torch.autograd.grad(losses[0].sum(), logits)
    assert gradient[0].any()
    assert not gradient[1:].any()  # nothing for who teaches


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_selector_learns_to_prefer_the_candidates_with_a_low_loss(config, tones, share):
    """Down the gradient, the expected loss of the candidates falls, and adapters learn too."""
    folder = load_folder(tones)
    config = replace(config, random_share=share, skip="adapter", candidates=6)
    run = new_run(config, list(folder.labels), {})
    run.dynamic.train()
    with torch.no_grad():
        run.dynamic.model.classifier.weight.mul_(300)  # masks that differ in their losses
    clips = folder.split("train")[:8]
    batch = run.collate(run.read(clips, "clips"))
    targets = run.task.targets(folder, clips)
    runs = [0] * 4
    for index, layer in enumerate(run.dynamic.stack.layers):
        layer.register_forward_hook(
            lambda module, args, out, index=index: runs.__setitem__(index, runs[index] + 1)
        )

    def loss():
        torch.manual_seed(0)
        return run.method.loss(run, batch, targets, Step(0, 2, np.random.default_rng(3)))

    before = loss()
    assert runs[0] == 1
    assert sum(runs) < 4 * 7
    before.backward()
    for name, parameter in (*run.dynamic.policy.named_parameters(), ("up", run.dynamic.skip.up)):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    selector = run.dynamic.policy.eval()  # its running statistics stay as they are
    values = []
    for _ in range(5):
        value = loss()
        run.dynamic.zero_grad()
        value.backward()
        with torch.no_grad():
            for parameter in selector.parameters():
                parameter -= 0.2 * parameter.grad
        values.append(value.item())
    assert values[-1] < values[0]


def test_learned_scores_are_trained_and_no_layer_is_read_after_that_is_not_there(
    config, tones, tmp_path
):
    static = train(replace(config, method="static"), load_folder(tones), tmp_path / "static")
    scores = static.dynamic.policy.layer_scores
    assert not torch.allclose(scores, depth_prior(4), atol=1e-3)
    again = load_run(tmp_path / "static")
    assert torch.equal(again.dynamic.policy.layer_scores, scores)
    late = replace(config, selector_after=9, epochs=0.2)
    run = train(late, load_folder(tones), tmp_path / "late")
    assert run.dynamic.policy.after == 3
    assert load_run(tmp_path / "late").dynamic.policy.after == 3


def test_imitating_itself_at_full_depth_costs_nothing(config, tones):
    folder = load_folder(tones)
    run = new_run(replace(config, method="dld", teacher="x"), list(folder.labels), {})
    run.teacher = run
    run.dynamic.eval()
    clips = folder.split("train")[:4]  # of different lengths: padded
    batch = run.collate(run.read(clips, "clips"))
    targets = run.task.targets(folder, clips)
    labels = torch.tensor([target.ids[0] for target in targets])
    full = cross_entropy(run.dynamic(**batch).logits, labels)
    for seed in range(40):
        mask = np.random.default_rng(seed).random(4) < 0.5
        loss = run.method.loss(run, batch, targets, Step(0, 1, np.random.default_rng(seed)))
        if mask.all():
            torch.testing.assert_close(loss, full, rtol=1e-4, atol=1e-4)
            break
        if mask.any():
            plain = run.dynamic(**batch, mask=torch.from_numpy(mask)).logits
            assert loss > cross_entropy(plain, labels) + 1e-3
    assert mask.all()


@pytest.mark.parametrize("task", ["classification", "text"])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_is_the_mean_over_the_clips_whatever_their_lengths(
    config, tones, method, task, tmp_path
):
    """So every clip weighs the same, also in the parts that several processes take."""
    folder = load_folder(tones)
    tokenizer = build_tokenizer(list(folder.labels)) if task == "text" else None
    labels = tokens_of(tokenizer) if tokenizer else list(folder.labels)
    config = replace(config, method=method, teacher="x" if method == "dld" else "", gate_penalty=0)
    run = new_run(config, labels, {"task": task}, tokenizer)
    if method == "dld":
        run.teacher = new_run(replace(config, method="full", teacher=""), labels, run.info)
    run.dynamic.eval()
    clips = sorted(folder.split("train"), key=clip_seconds)
    clips = [clips[0], clips[-1], clips[1]]  # padded, and in no order
    features, targets = run.read(clips, "read"), run.task.targets(folder, clips)
    if method == "distill":
        add_updates(run.dynamic, {"encoder": 2})
    targets = run.method.prepare(run, clips, targets, tmp_path)

    def loss(rows):
        step = Step(0, 1, np.random.default_rng(1), rows=rows)
        batch = run.collate([features[row] for row in rows])
        with torch.no_grad(), seeded(0):
            return run.method.loss(run, batch, [targets[row] for row in rows], step)

    if method == "i3d":  # open or closed for all alike, whatever the noise
        for score in run.dynamic.policy.score:
            torch.nn.init.zeros_(score.weight)
            torch.nn.init.constant_(score.bias, 100.0)
    if method == "idld":  # the first k for all alike
        torch.nn.init.zeros_(run.dynamic.policy.score.weight)
        with torch.no_grad():
            run.dynamic.policy.score.bias.copy_(-1000.0 * torch.arange(4))
    alone = torch.stack([loss([row]) for row in range(3)])
    assert alone.std() > 1e-3
    torch.testing.assert_close(loss([0, 1, 2]), alone.mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", ["method", "labels", "none"])
def test_a_teacher_that_does_not_fit_is_refused(config, tones, tmp_path, teacher, wrong):
    folder = load_folder(tones)
    config = replace(config, method="dld", teacher=teacher)
    if wrong == "method":
        random_run = replace(config, method="random", teacher="", epochs=0.2)
        train(random_run, folder, tmp_path / "random")
        config = replace(config, teacher=str(tmp_path / "random"))
    elif wrong == "labels":
        folder = replace(folder, labels=folder.labels[::-1])
    else:
        config = replace(config, teacher=str(tmp_path / "nothing"))
    match = "is not a run" if wrong == "none" else "give one of method 'full' on the same data"
    with pytest.raises(ValueError, match=match):
        train(config, folder, tmp_path / "run")


def test_steps_of_a_fraction_of_an_epoch():
    for epochs, count in ((1, 3), (0.5, 2), (1e-9, 1), (2.34, 8), (3, 9)):
        assert steps_in(TrainConfig(batch_size=8, epochs=epochs), [1.0] * 17) == count


def test_a_step_has_as_much_audio_as_it_may_and_each_clip_comes_once_an_epoch(tones):
    clips = load_folder(tones).split("train")
    lengths = [clip_seconds(clip) for clip in clips]
    config = TrainConfig(batch_size=30, batch_seconds=4 * max(lengths), epochs=2.5)
    order = loader.Order(lengths, config)
    steps = [order[step] for step in range(order.total)]
    assert all(len(rows) * max(lengths[row] for row in rows) <= 4 * max(lengths) for rows in steps)
    assert max(len(rows) for rows in steps) > 4  # of short clips more fit
    first, second = int(order.ends[0]), int(order.ends[1])
    for epoch in (steps[:first], steps[first:second]):
        assert sorted(row for rows in epoch for row in rows) == list(range(len(clips)))
    again = loader.Order(lengths, config)
    assert [again[step] for step in reversed(range(order.total))] == steps[::-1]


def test_a_training_by_seconds_stopped_at_a_step_ends_with_the_same_weights(
    config, tones, tmp_path
):
    config, folder = replace(config, batch_seconds=2.0), load_folder(tones)
    train(config, folder, tmp_path / "whole")
    steps = load_run(tmp_path / "whole").info["steps"]
    assert steps > steps_in(replace(config, batch_seconds=None), [1.0] * 40)
    stop_and_go_on(config, folder, tmp_path / "stopped", 3)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


# --- the configuration ----------------------------------------------------------------------


def test_configuration_survives_yaml(tmp_path):
    config = TrainConfig(
        lr_encoder=3e-5, max_seconds=2.5, method="dld", teacher="runs/full", seed=7,
        gates="local", noise_share=0.5, candidates=3, selector_after=1, skip="adapter",
        backbone_masking=True,
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "c.yaml") == config
    assert TrainConfig.from_yaml(tmp_path / "c.yaml", seed="8").seed == 8


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"lr": 1}, "unknown setting lr; known: backbone"),
        ({"epochs": "many"}, "epochs takes a float; got 'many'"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"epochs": float("nan")}, "epochs must be above 0"),
        ({"batch_size": 2.5}, "batch_size takes an int"),
        ({"method": "magic"}, r"unknown method 'magic'\. Known: full"),
        ({"freeze": "all"}, "freeze is one of"),
        ({"skip": "jump"}, "skip is one of"),
        ({"distill": 2}, "distill is a share"),
        ({"max_seconds": -1}, "max_seconds"),
        ({"seed": -1}, "seed"),
        ({"gates": "near"}, "gates is one of global, local"),
        ({"precision": "fp16"}, "precision is one of auto, bf16, fp32"),
        ({"method": "dld"}, "method 'dld' needs teacher: a finished run of method 'full'"),
        ({"teacher": "runs/full"}, "method 'input' learns from no teacher"),
        ({"noise_share": 1.5}, "noise_share is a share"),
        ({"noise_share": float("nan")}, "noise_share is a share"),
        ({"random_share": -0.1}, "random_share is a share"),
        ({"mask_share": 2}, "mask_share is a share"),
        ({"speed_change": 0.6}, "speed_change is at most 0.5"),
        ({"lr_head": 0}, "lr_head must be above 0, or null"),
        ({"lr_warmup": 2}, "lr_warmup is a share"),
        ({"candidates": -1}, "candidates must be 0 or more"),
        ({"candidates": 1.5}, "candidates takes an int"),
        ({"selector_after": -1}, "selector_after must be 0 or more"),
        ({"gate_penalty": -1}, "gate_penalty must be 0 or more"),
        ({"gate_penalty": float("nan")}, "gate_penalty must be 0 or more"),
        ({"epochs": float("inf")}, "epochs must be finite"),
        ({"max_seconds": "inf"}, "max_seconds must be finite"),
        ({"backbone_masking": 1}, "backbone_masking takes true or false; got 1"),
        ({"backbone_masking": "maybe"}, "backbone_masking takes true or false; got 'maybe'"),
        ({"budgets": [1, 2]}, "unknown setting budgets"),
    ],
)
def test_settings_that_make_no_sense(values, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig.from_values(values)


def test_a_setting_that_is_true_or_false_is_read_from_words():
    for value in (True, "true", "Yes"):
        assert TrainConfig.from_values({"backbone_masking": value}).backbone_masking is True
    for value in (False, "false", "no"):
        assert TrainConfig.from_values({"backbone_masking": value}).backbone_masking is False


def test_yaml_that_is_none(tmp_path):
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        TrainConfig.from_yaml(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="expected names with values, got a list of 2"):
        TrainConfig.from_yaml(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


def test_copy_of_a_run_is_a_run(config, tones, tmp_path):
    train(replace(config, epochs=1), load_folder(tones), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert load_run(tmp_path / "copy").config == load_run(tmp_path / "run").config


@pytest.mark.parametrize("damage", ["lacks", "another shape"])
def test_a_backbone_whose_encoder_lacks_weights_is_refused(damage, whisper, tones, tmp_path):
    """transformers fills them with random ones, as it does for a new head."""
    path = tmp_path / "backbone"
    shutil.copytree(whisper, path)
    weights = load_file(path / "model.safetensors")
    name = "encoder.layers.1.fc1.weight"
    lost = weights.pop(name)
    if damage == "another shape":
        weights[name] = lost[:-1].contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of \d+ weights of its encoder, such as .*fc1"):
        train(TrainConfig(backbone=str(path)), load_folder(tones), tmp_path / "run")


@pytest.mark.parametrize("method", ["full", "input"])
def test_layers_that_run_again_in_the_backward_pass_give_the_same_weights(
    config, tones, tmp_path, masking, method
):
    """Also where they draw random numbers, as wav2vec 2.0 in training does."""
    config = replace(config, backbone=str(masking), method=method, epochs=0.5)
    folder = load_folder(tones)
    passes = {}
    for again in (False, True):
        seen = []
        with torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, *_, seen=seen: seen.append(type(module).__name__)
        ):
            one = replace(config, gradient_checkpointing=again)
            run = train(one, folder, tmp_path / str(again))
        passes[again] = seen.count("Linear")  # of those that layers are made of, above all
    assert passes[True] > passes[False] > 0
    assert weights(tmp_path / "True") == weights(tmp_path / "False")
    assert not run.dynamic.base.is_gradient_checkpointing


def test_compiled_layers_train_as_others_do_and_are_none_afterwards(
    config, tones, tmp_path, monkeypatch
):
    compiled = []

    def eager(layer):
        compiled.append(layer)
        layer._compiled_call_impl = torch.compile(layer._call_impl, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    config = replace(config, precision="fp32", epochs=0.5)
    folder = load_folder(tones)
    plain = train(config, folder, tmp_path / "plain").dynamic
    assert compiled == []
    run = train(replace(config, compile=True), folder, tmp_path / "compiled").dynamic
    assert len(compiled) == 4
    assert all(layer._compiled_call_impl is None for layer in compiled)
    ours = dict(plain.named_parameters())
    for name, value in run.named_parameters():
        torch.testing.assert_close(value, ours[name], rtol=1e-3, atol=1e-5)


def test_tf32_is_on_in_the_steps_alone(config, tones, tmp_path, monkeypatch):
    seen = []
    step = steps.one_step

    def noting(*args):
        seen.append(torch.get_float32_matmul_precision())
        return step(*args)

    monkeypatch.setattr(steps, "one_step", noting)
    before = torch.get_float32_matmul_precision()
    for tf32 in (False, True):
        config = replace(config, tf32=tf32, epochs=1e-9)
        train(config, load_folder(tones), tmp_path / str(tf32))
    assert seen == [before, "high"]
    assert torch.get_float32_matmul_precision() == before
