"""Saving and loading: bit for bit, all or nothing, and nothing that was tampered with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import MODELS, inputs, make
from torch import nn

import sounding
from sounding.core import model as core
from sounding.files import atomic_directory, atomic_path, recover, sha256, write_json, write_text


def choosy(name, seed=0, **options):
    """A wrapped model whose selector really depends on its input."""
    dynamic = sounding.wrap(make(name, seed), **options).eval()
    torch.manual_seed(5 + seed)
    nn.init.normal_(dynamic.selector.score.weight, std=3.0)
    nn.init.normal_(dynamic.selector.center)
    return dynamic


def outputs(out):
    return [value for value in out.values() if torch.is_tensor(value)]


@pytest.fixture
def saved(tmp_path):
    """A saved dynamic model."""
    choosy("whisper-classification").save_pretrained(tmp_path / "d")
    return tmp_path / "d"


# --- round trips ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_round_trip_is_bit_identical_at_every_budget(name, tmp_path):
    dynamic = choosy(name)
    batch = inputs(dynamic.model)
    dynamic.save_pretrained(tmp_path)
    again = sounding.load(tmp_path)
    assert type(again.model) is type(dynamic.model)
    assert not again.training
    assert not any(module.training for module in again.modules())
    for budget in (1, 2, 3, 4, [1, 4, 2]):
        before, after = (one(**batch, budget=budget) for one in (dynamic, again))
        assert all(map(torch.equal, outputs(before), outputs(after)))
        assert torch.equal(before.executed_layers, after.executed_layers)
    plain = type(dynamic.model).from_pretrained(tmp_path).eval()
    full, plain = outputs(dynamic(**batch)), outputs(plain(**batch))
    assert all(map(torch.equal, full[:-1], plain))  # the last one is executed_layers


@pytest.mark.parametrize("selector", ["first", "input"])
@torch.no_grad()
def test_skip_and_selector_are_saved(selector, tmp_path):
    dynamic = sounding.wrap(make("wav2vec2-post"), selector, skip="norm")
    dynamic.save_pretrained(tmp_path)
    again = sounding.load(tmp_path)
    assert again.skip.kind == "norm"
    assert type(again.selector) is type(dynamic.selector)
    batch = inputs(dynamic.model)
    assert torch.equal(dynamic(**batch, budget=2).logits, again(**batch, budget=2).logits)


@torch.no_grad()
def test_clips_below_the_window_of_whisper_work_before_and_after_a_round_trip(tmp_path):
    dynamic = choosy("whisper-classification")
    batch = inputs(dynamic.model, lengths=[61, 98, 37])
    before = dynamic(**batch, budget=[1, 2, 4])
    dynamic.save_pretrained(tmp_path)
    after = sounding.load(tmp_path)(**batch, budget=[1, 2, 4])
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.executed_layers, after.executed_layers)


def test_a_model_works_on_after_it_was_saved_and_can_be_unwrapped(tmp_path):
    dynamic = choosy("wav2vec2-post")
    batch = inputs(dynamic.model)
    with torch.no_grad():
        before = dynamic(**batch, budget=2)
        dynamic.save_pretrained(tmp_path)
        assert torch.equal(dynamic(**batch, budget=2).logits, before.logits)
        full = dynamic(**batch).logits
        plain = sounding.unwrap(dynamic)
        assert torch.equal(plain(**batch).logits, full)
    assert sounding.load(tmp_path).num_layers == 4


def test_the_saved_config_has_the_random_dropping_of_the_model(tmp_path):
    dynamic = sounding.wrap(make("wav2vec2-post", layerdrop=0.3))
    dynamic.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layerdrop"] == 0.3
    assert dynamic.config.layerdrop == 0.0
    assert sounding.load(tmp_path).config.layerdrop == 0.0


@torch.no_grad()
def test_load_passes_options_on(saved):
    dynamic = sounding.load(saved, dtype=torch.bfloat16)
    assert dynamic.dtype == torch.bfloat16
    batch = {k: v.bfloat16() for k, v in inputs(dynamic.model).items()}
    assert dynamic(**batch, budget=2).executed_layers.sum(-1).tolist() == [2, 2, 2]


def test_companions_and_other_files_stay_beside_the_model(saved):
    (saved / "notes.txt").write_text("mine")
    (saved / "sub").mkdir()
    (saved / "sub" / "more.txt").write_text("mine too")
    extractor = transformers.WhisperFeatureExtractor(feature_size=16)
    choosy("whisper-classification", seed=1).save_pretrained(saved, companions=[extractor])
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "sub" / "more.txt").read_text() == "mine too"
    assert transformers.WhisperFeatureExtractor.from_pretrained(saved).feature_size == 16
    sounding.load(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["d"]


def test_a_symbolic_link_stays_a_link(saved):
    link = saved.parent / "link"
    link.symlink_to(saved)
    for seed in (1, 2):
        choosy("whisper-classification", seed=seed).save_pretrained(link)
    assert link.is_symlink()
    expected = choosy("whisper-classification", seed=2).selector.score.weight
    assert torch.equal(sounding.load(saved).selector.score.weight, expected)


def test_a_selector_that_load_cannot_build_is_refused_before_anything_is_written(tmp_path):
    class Mine(nn.Module):
        pass

    dynamic = sounding.wrap(make("ast"), Mine())
    with pytest.raises(ValueError, match="Mine"):
        dynamic.save_pretrained(tmp_path / "d")
    assert not list(tmp_path.iterdir())


# --- damage ---------------------------------------------------------------------------------


def flip_a_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


WEIGHTS = ["model.safetensors", "selector.safetensors"]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("position", [0, 8, 100, -1])
def test_one_changed_bit_of_the_weights_is_refused(name, position, saved):
    flip_a_byte(saved / name, position)
    with pytest.raises(ValueError, match=rf"{name}.*sha256 differs"):
        sounding.load(saved)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("size", [0, 7, 1000])
def test_truncated_weights_are_refused(name, size, saved):
    os.truncate(saved / name, size)
    with pytest.raises(ValueError, match=rf"{name}.*sha256 differs"):
        sounding.load(saved)


@pytest.mark.parametrize("name", [*WEIGHTS, "sounding.json", "config.json"])
def test_a_missing_file_is_named(name, saved):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name):
        sounding.load(saved)


@pytest.mark.parametrize("name", ["sounding.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"format": 1}'])
def test_broken_json_is_refused(name, content, saved):
    (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(saved)):
        sounding.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"model": "os"},
        {"model": "AutoModel"},
        {"model": "torch"},
        {"model": None},
        {"model": "ASTForAudioClassification"},
        {"selector": None},
        {"selector": {"kind": "evil"}},
        {"selector": {"kind": "input", "width": 32, "layers": 4, "hidden": 7}},
        {"selector": {"kind": "input", "width": "x", "layers": 4}},
        {"selector": {"kind": "static", "layers": 4}},
        {"skip": "zero"},
        {"skip": "norm"},
        {"layers": 3},
        {"sha256": {}},
        {"sha256": []},
        {"sha256": {"model.safetensors": "0"}},
    ],
    ids=repr,
)
def test_a_changed_description_is_refused(change, saved):
    description = json.loads((saved / "sounding.json").read_text())
    (saved / "sounding.json").write_text(json.dumps(description | change))
    with pytest.raises(ValueError, match=r"sounding\.json|cannot be loaded|skip|weights"):
        sounding.load(saved)


@pytest.mark.parametrize(
    "change", [{"encoder_layers": 5}, {"encoder_layers": 3}, {"d_model": 64}, {"num_labels": 3}]
)
def test_a_config_that_does_not_fit_the_weights_is_refused(change, saved):
    config = json.loads((saved / "config.json").read_text())
    if "num_labels" in change:
        change = {"id2label": {0: "a"}, "label2id": {"a": 0}}
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=str(saved)):
        sounding.load(saved)


def test_nothing_is_unpickled(saved, tmp_path):
    """Not even where the description has been forged to leave the weights out."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("pytorch_model.bin", "selector.bin", "training_args.bin"):
        (saved / name).write_bytes(pickle.dumps(Bomb()))
        torch.save(Bomb(), saved / name)
    sounding.load(saved)
    (saved / "model.safetensors").unlink()
    description = json.loads((saved / "sounding.json").read_text())
    del description["sha256"]["model.safetensors"]
    (saved / "sounding.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=str(saved)):
        sounding.load(saved)
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_unpickled_even_if_the_pickle_is_a_good_one(saved):
    weights = load_file(saved / "model.safetensors")
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    description = json.loads((saved / "sounding.json").read_text())
    del description["sha256"]["model.safetensors"]
    (saved / "sounding.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="safetensors"):
        sounding.load(saved)


def test_weights_that_lack_a_tensor_are_refused(saved):
    """Else the layer would silently be a random one."""
    weights = load_file(saved / "model.safetensors")
    weights.pop("encoder.layers.1.fc1.weight")
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    description = json.loads((saved / "sounding.json").read_text())
    description["sha256"]["model.safetensors"] = sha256(saved / "model.safetensors")
    (saved / "sounding.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="does not fit"):
        sounding.load(saved)


@pytest.mark.parametrize("kind", ["nothing", "file", "empty", "plain"])
def test_a_directory_that_is_not_a_dynamic_model_is_refused(kind, tmp_path):
    path = tmp_path / "d"
    if kind == "file":
        path.write_text("hello")
    elif kind == "empty":
        path.mkdir()
    elif kind == "plain":
        make("ast").save_pretrained(path)
    with pytest.raises(ValueError, match=r"sounding\.json"):
        sounding.load(path)


# --- interruptions --------------------------------------------------------------------------


class Full(OSError):
    """No space left on device."""


@pytest.mark.parametrize("where", ["model", "selector", "json", "rename", "companion"])
@pytest.mark.parametrize("error", [Full, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_one_as_it_was(where, error, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    dynamic = choosy("whisper-classification", seed=1)
    companions = []

    def fail(*args, **kwargs):
        raise error

    if where == "model":
        monkeypatch.setattr(dynamic.model, "save_pretrained", fail)
    elif where == "selector":
        monkeypatch.setattr(core, "save_file", fail)
    elif where == "json":
        monkeypatch.setattr(core, "write_json", fail)
    elif where == "companion":
        companions = [type("Companion", (), {"save_pretrained": fail})()]
    else:  # the old directory is out of the way, the new one not yet in its place
        replace = os.replace

        def only_once(source, target):
            if Path(target) == saved and ".tmp" in str(source):
                raise error
            replace(source, target)

        monkeypatch.setattr(os, "replace", only_once)
    with pytest.raises(error):
        dynamic.save_pretrained(saved, companions=companions)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["d"]
    monkeypatch.undo()
    dynamic.save_pretrained(saved)
    expected = dynamic.selector.score.weight
    assert torch.equal(sounding.load(saved).selector.score.weight, expected)


KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
from tiny import make
import sounding
from transformers.utils import logging
logging.disable_progress_bar()
dynamic = sounding.wrap(make("whisper-classification"))
value = float(sys.argv[2])
print("ready", flush=True)
while True:
    value += 1
    torch.nn.init.constant_(dynamic.selector.score.weight, value)
    torch.nn.init.constant_(dynamic.model.classifier.weight, value)
    dynamic.save_pretrained(sys.argv[1])
    print(value, flush=True)
"""


def test_kill_9_in_the_middle_of_a_save_leaves_the_old_one_or_the_new_one(tmp_path):
    """One process that saves all the time, killed at moments that differ."""
    script = tmp_path / "save.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))
    path = tmp_path / "d"
    value = 0.0
    process = subprocess.Popen(
        [sys.executable, script, path, str(value)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen = [float(process.stdout.readline()) for _ in range(3)]
    time.sleep(0.0137)
    process.send_signal(signal.SIGKILL)
    seen += [float(line) for line in process.stdout.read().split()]
    process.wait()
    last = seen[-1]
    dynamic = sounding.load(path)
    found = float(dynamic.selector.score.weight.flatten()[0].detach())
    assert found in (last, last + 1)
    assert (dynamic.selector.score.weight == found).all()
    assert (dynamic.model.classifier.weight == found).all()


KILL_AT = """
import os, sys
from pathlib import Path
from sounding.files import atomic_directory
calls, replace = 0, os.replace
def dying(source, target):
    global calls
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    calls += 1
    replace(source, target)
os.replace = dying
with atomic_directory(sys.argv[1], keep_others=True) as temporary:
    (temporary / "a").write_text("new")
    (temporary / "b").write_text("new")
"""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_kill_9_at_each_rename_leaves_the_old_content_or_the_new(at, tmp_path):
    path = tmp_path / "d"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("old")
        (temporary / "b").write_text("old")
        (temporary / "c").write_text("kept")
    command = [sys.executable, "-c", KILL_AT, path, str(at)]
    code = subprocess.run(command, check=False).returncode
    assert code == (0 if at == 2 else -signal.SIGKILL)
    recover(path)
    content = {item.name: item.read_text() for item in path.iterdir()}
    state = "new" if at == 2 else "old"
    assert content == {"a": state, "b": state, "c": "kept"}
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("newer")
    assert [item.name for item in path.iterdir()] == ["a"]
    assert not (tmp_path / ".d.old").exists()


def test_load_takes_back_what_a_kill_between_the_renames_left(saved):
    saved.rename(saved.parent / ".d.old")
    assert sounding.load(saved).num_layers == 4


# --- files.py -------------------------------------------------------------------------------


def test_an_atomic_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "one\n")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one\n"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]


def test_json_is_written_readably(tmp_path):
    write_json(tmp_path / "a.json", {"größe": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert text.endswith("}\n")


def test_files_and_directories_get_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / "a").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750


def test_a_file_in_the_place_of_a_directory_is_refused_and_kept(tmp_path):
    (tmp_path / "d").write_text("mine")
    with pytest.raises(ValueError, match="is a file"), atomic_directory(tmp_path / "d"):
        pass
    assert (tmp_path / "d").read_text() == "mine"


def test_other_files_are_kept_also_without_hard_links(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    for name in ("a", "b"):
        with atomic_directory(tmp_path / "d", keep_others=True) as temporary:
            (temporary / name).mkdir()
            (temporary / name / "file").write_text(name)
    assert sorted(item.name for item in (tmp_path / "d").iterdir()) == ["a", "b"]


def test_a_file_kept_from_the_old_directory_is_not_shared_with_a_new_write(tmp_path):
    """Kept files are hard links: writing one anew must not reach back."""
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "a").write_text("old")
    copy = tmp_path / "copy"
    os.link(tmp_path / "d" / "a", copy)
    with atomic_directory(tmp_path / "d", keep_others=True) as temporary:
        (temporary / "a").write_text("new")
    assert copy.read_text() == "old"
