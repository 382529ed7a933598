"""Saving and loading: bit for bit, all or nothing, and nothing that was tampered with."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from forge import forge
from safetensors.torch import load_file, save_file
from tiny import MODELS, inputs, make
from torch import nn

import sounding
from sounding.files import (
    SEAL,
    WriteError,
    atomic_directory,
    atomic_path,
    locked,
    recover,
    remove_dead,
    remove_leftovers,
    set_seal,
    sha256,
    write_json,
    write_sealed_json,
    write_text,
)
from sounding.model import io
from sounding.policies import Policy


def choosy(name, seed=0, **options):
    """A wrapped model whose selector really depends on its input."""
    dynamic = sounding.wrap(make(name, seed), **options).eval()
    torch.manual_seed(5 + seed)
    nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    nn.init.normal_(dynamic.policy.center)
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
    assert type(again.policy) is type(dynamic.policy)
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
    expected = choosy("whisper-classification", seed=2).policy.score.weight
    assert torch.equal(sounding.load(saved).policy.score.weight, expected)


def test_a_selector_that_load_cannot_build_is_refused_before_anything_is_written(tmp_path):
    class Mine(Policy):
        kind = "mine"

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
        {"layers": "4"},
        {"layers": 10**30},
        {"layers": True},
        {"exits": True},
        {"trained": "yes"},
        {"surprise": 1},
        {"selector": {"kind": "input", "width": 32, "layers": 4, "hidden": 10**9}},
        {"selector": {"kind": "static", "layers": 10**9}},
        {"decoder_selector": {"kind": "static", "layers": 2}},
    ],
    ids=repr,
)
def test_a_changed_description_is_refused(change, saved):
    forge(saved, **change)
    with pytest.raises(ValueError, match=r"sounding\.json|cannot be loaded|skip|weights"):
        sounding.load(saved)


@pytest.mark.parametrize("name", ["sounding.json", "config.json"])
def test_one_changed_bit_of_what_describes_the_model_is_refused(name, saved):
    whole = (saved / name).read_bytes()
    for position in range(0, len(whole), 7):
        flip_a_byte(saved / name, position)
        with pytest.raises(ValueError, match=str(saved)):
            sounding.load(saved)
        (saved / name).write_bytes(whole)
    sounding.load(saved)


OUTSIDE = ["/etc/hosts", "../secret", "a/b", "a\\b", "..", "C:\\x", "C:x", "", ".", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_outside_of_the_directory_is_not_even_looked_at(name, saved, monkeypatch):
    forge(saved, lambda config: config["sha256"].update({name: "0" * 64}))
    looked = []
    monkeypatch.setattr(io, "sha256", lambda path: looked.append(path))
    with pytest.raises(ValueError, match=r"sounding\.json.*is not the name of a file beside it"):
        sounding.load(saved)
    assert not looked


def test_what_an_earlier_version_wrote_still_loads(saved):
    """Without a seal, with the weights only in the list, and no word of its training."""
    path = saved / "sounding.json"
    config = json.loads(path.read_text())
    for name in (SEAL, "trained", "decoder_trained"):
        del config[name]
    weights = {n: d for n, d in config["sha256"].items() if n.endswith(".safetensors")}
    path.write_text(json.dumps(config | {"sha256": weights}))
    assert sounding.load(saved).trained


def test_a_pipe_in_place_of_a_file_is_an_error_and_no_wait(saved):
    for name in ("config.json", "sounding.json", "model.safetensors"):
        (saved / name).rename(saved / "kept")
        os.mkfifo(saved / name)
        with pytest.raises(ValueError, match=name):
            sounding.load(saved)
        (saved / name).unlink()
        (saved / "kept").rename(saved / name)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_layers": "four"},
        {"d_model": 10**30},
        {"d_model": -1},
        {"auto_map": {"AutoConfig": "evil.Config"}},
        {"architectures": 3},
    ],
)
def test_a_config_of_wrong_types_is_one_error_that_names_the_directory(change, saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    (saved / "evil.py").write_text("raise SystemExit('it ran')")
    forge(saved)
    if "auto_map" in change or "architectures" in change:
        sounding.load(saved)  # read by nobody here, least of all as code
        return
    with pytest.raises(ValueError, match=str(saved)) as error:
        sounding.load(saved)
    assert "\n" not in str(error.value)


def test_damaged_safetensors_are_one_error_that_names_the_directory(saved):
    for content in (b"", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}"):
        for name in WEIGHTS:
            whole = (saved / name).read_bytes()
            (saved / name).write_bytes(content)
            forge(saved)
            with pytest.raises(ValueError, match=str(saved)):
                sounding.load(saved)
            (saved / name).write_bytes(whole)


@pytest.mark.parametrize(
    "change", [{"encoder_layers": 5}, {"encoder_layers": 3}, {"d_model": 64}, {"num_labels": 3}]
)
def test_a_config_that_does_not_fit_the_weights_is_refused(change, saved):
    config = json.loads((saved / "config.json").read_text())
    if "num_labels" in change:
        change = {"id2label": {0: "a"}, "label2id": {"a": 0}}
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=r"config\.json is not the file that was saved"):
        sounding.load(saved)
    forge(saved)
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
    forge(saved, lambda config: config["sha256"].pop("model.safetensors"))
    with pytest.raises(ValueError, match=str(saved)):
        sounding.load(saved)
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_unpickled_even_if_the_pickle_is_a_good_one(saved):
    weights = load_file(saved / "model.safetensors")
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    forge(saved, lambda config: config["sha256"].pop("model.safetensors"))
    with pytest.raises(ValueError, match="safetensors"):
        sounding.load(saved)


def test_weights_that_lack_a_tensor_are_refused(saved):
    """Else the layer would silently be a random one."""
    weights = load_file(saved / "model.safetensors")
    weights.pop("encoder.layers.1.fc1.weight")
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    forge(saved)
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
        monkeypatch.setattr(io, "save_file", fail)
    elif where == "json":
        monkeypatch.setattr(io, "write_sealed_json", fail)
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
    expected = dynamic.policy.score.weight
    assert torch.equal(sounding.load(saved).policy.score.weight, expected)


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
    torch.nn.init.constant_(dynamic.policy.score.weight, value)
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
    found = float(dynamic.policy.score.weight.flatten()[0].detach())
    assert found in (last, last + 1)
    assert (dynamic.policy.score.weight == found).all()
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
            (temporary / "sub").mkdir(0o700)
            save_file({}, temporary / "sub" / "weights.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "d" / "sub").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "d" / "sub" / "weights.safetensors").stat().st_mode & 0o777 == 0o640
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


def names(directory):
    return sorted(os.fsencode(item.name) for item in directory.iterdir())


LONG = ["a" * 240, "b" * 255, "ü" * 127, "x" * 250 + ".json"]


@pytest.mark.parametrize("name", LONG, ids=len)
def test_the_longest_names_can_be_written(tmp_path, name):
    for text in ("one", "two"):
        write_text(tmp_path / name, text)
        assert (tmp_path / name).read_text() == text
    (tmp_path / name).unlink()
    for content in ("one", "two"):
        with atomic_directory(tmp_path / name) as temporary:
            (temporary / content).touch()
    assert names(tmp_path / name) == [b"two"]
    assert len(names(tmp_path)) == 1


def test_names_that_are_not_utf_8_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text
    with atomic_directory(tmp_path / os.fsdecode(b"\xff")) as temporary:
        (temporary / "a").touch()
    assert names(tmp_path) == [b"caf\xe9.txt", b"\xff"]
    write_json(tmp_path / "a.json", {"file": path.name})  # which has no UTF-8
    write_sealed_json(tmp_path / "b.json", {"file": path.name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"file": "caf?.txt"}


WRITING = """
import os, sys, time
from pathlib import Path
from sounding.files import atomic_directory, atomic_path, temporary_directory
root = Path(sys.argv[1])
with atomic_path(root / "file") as a, atomic_directory(root / "d") as b:
    with temporary_directory(root / "big") as c:
        a.write_text("half")
        (b / "x").write_text("half")
        (c / "y").write_text("half")
        print("writing", flush=True)
        if sys.argv[2] == "killed":
            os.kill(os.getpid(), 9)
        time.sleep(60)
"""
WRITE = "import sys; from sounding.files import write_text; write_text(sys.argv[1], 'new')"


def writing(root, how):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, root, how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_left_is_removed_by_the_next_write_beside_it(tmp_path):
    assert writing(tmp_path, "killed").wait() == -signal.SIGKILL
    assert len(names(tmp_path)) == 3
    subprocess.run([sys.executable, "-c", WRITE, tmp_path / "other"], check=True)
    assert names(tmp_path) == [b"other"]


def test_what_a_living_process_is_writing_stays(tmp_path):
    process = writing(tmp_path, "lives")
    try:
        for _ in range(2):
            subprocess.run([sys.executable, "-c", WRITE, tmp_path / "file"], check=True)
        remove_dead(tmp_path)
        assert len(names(tmp_path)) == 4
    finally:
        process.kill()
        process.wait()
    remove_dead(tmp_path)
    assert names(tmp_path) == [b"file"]


def test_what_a_process_before_us_left_under_our_number_is_removed(tmp_path):
    """The first process of every container is number 1."""
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("now")
        before = temporary.with_name(temporary.name.replace(temporary.name[-12:-4], "abcd_123"))
        before.touch()
        remove_dead(tmp_path)
        assert not before.exists()
    assert (tmp_path / "file").read_text() == "now"


def test_what_another_machine_is_writing_stays_for_a_day(tmp_path):
    """Whose processes we cannot see."""
    leftover = tmp_path / ".model.onnx.0123abcd.89abcdef-1.abcd_123.tmp"
    leftover.touch()
    mine = [tmp_path / ".notes.tmp", tmp_path / "a.tmp", tmp_path / ".a.0123abcd.tmp"]
    for path in mine:
        path.touch()
    remove_dead(tmp_path)
    assert leftover.exists()
    yesterday = time.time() - 25 * 3600
    for path in (leftover, *mine):
        os.utime(path, (yesterday, yesterday))
    remove_dead(tmp_path)
    assert not leftover.exists()
    assert all(path.exists() for path in mine)


def test_leftovers_of_one_target_are_removed_whoever_wrote_them(tmp_path):
    process = writing(tmp_path, "lives")
    (tmp_path / ".file.abcd_123.tmp").touch()  # of an earlier version
    (tmp_path / ".file.mine.tmp").touch()
    try:
        remove_leftovers(tmp_path / "file")
        assert len(names(tmp_path)) == 3
        assert b".file.mine.tmp" in names(tmp_path)
    finally:
        process.kill()
        process.wait()


def test_of_many_that_write_one_directory_at_once_the_last_wins(tmp_path):
    """And none fails; a reader that looks for what a kill left does no harm."""
    errors = []

    def write(number):
        try:
            for _ in range(30):
                with atomic_directory(tmp_path / "d") as temporary:
                    for name in "ab":
                        (temporary / name).write_text(str(number))
                recover(tmp_path / "d")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert (tmp_path / "d" / "a").read_text() == (tmp_path / "d" / "b").read_text()
    assert names(tmp_path) == [b"d"]


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from sounding.files import atomic_directory, atomic_path, temporary_directory, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
root, weights = Path(sys.argv[1]), {"a": np.zeros(10_000)}
def text(): write_text(root / "file", 10_000 * "x")
def rust():
    with atomic_path(root / "file") as temporary:
        save_file(weights, temporary)
def directory():
    with atomic_directory(root / "d") as temporary:
        write_text(temporary / "a", "fits")
        save_file(weights, temporary / "b")
def big():
    with temporary_directory(root / "big") as temporary:
        (temporary / "a").write_bytes(10_000 * b"x")
try:
    globals()[sys.argv[2]]()
except OSError as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no limit of a file's size")
@pytest.mark.parametrize(
    ("how", "name"), [("text", "file"), ("rust", "file"), ("directory", "d"), ("big", "big")]
)
def test_without_room_the_error_says_where_and_the_old_content_stays(tmp_path, how, name):
    (tmp_path / "d").mkdir()
    for path in (tmp_path / "file", tmp_path / "d" / "a"):
        path.write_text("old")
    command = [sys.executable, "-c", FULL, tmp_path, how]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"WriteError 27 {tmp_path / name} cannot be written (File too large)")
    assert "make room" in told
    assert "the same command goes on" in told
    assert names(tmp_path) == [b"d", b"file"]
    for path in (tmp_path / "file", tmp_path / "d" / "a"):
        assert path.read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_at_the_last_moment_too(tmp_path, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"file cannot be written .*: what was there before is"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == [b"file"]


HOLD = """
import sys, time
from sounding.files import locked
with locked(sys.argv[1]):
    print("has it", flush=True)
    time.sleep(60)
"""


def test_a_directory_is_for_one_process_until_its_end(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "d"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "has it\n"
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"d is in use by another process"), locked(tmp_path / "d"):
        pass
    assert time.monotonic() - began < 5
    process.kill()
    process.wait()
    for _ in range(2):
        with locked(tmp_path / "d"):
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in directories")
def test_a_checksum_of_a_pipe_is_an_error_and_no_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device"):
        sha256(tmp_path / "pipe")


def test_a_seal_covers_what_is_before_and_behind_it():
    data = b"before" + 64 * b"0" + b"behind"
    sealed = set_seal(data, 6)
    assert sealed[:6] + sealed[70:] == b"beforebehind"
    assert set_seal(data[:-1] + b"!", 6)[6:70] != sealed[6:70]
