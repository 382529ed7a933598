"""Several processes train as one does, and go on with another number of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import sounding
from sounding.data.folder import load_folder
from sounding.evaluation.sweep import Sweep
from sounding.policies import gates
from sounding.policies.noise import gumbel_like, whole_batch
from sounding.registry import METHODS
from sounding.runs.config import TrainConfig
from sounding.runs.run import load_run
from sounding.runs.validations import read_validations
from sounding.training.distributed import Processes
from sounding.training.loop import train

CONFIG = TrainConfig(epochs=1, batch_size=7, precision="fp32", noise_share=0.5)  # 40 clips: 5 left
# gates that differ from clip to clip, and draw no noise
GATES = """
import torch
from sounding.policies import gates
from sounding.registry import METHODS
gates.gumbel_like = torch.zeros_like
policy = METHODS["i3d"].policy
def spread(config, **sizes):
    made = policy(config, **sizes)
    with torch.no_grad():
        for score in made.score:
            score.weight.mul_(300)
    logits = made.logits
    made.logits = lambda *state: 5 * torch.sin(20 * logits(*state))
    return made
METHODS["i3d"].policy = spread
"""
# `sounding train` that stops after STOP steps, if any, as by a signal
WORKER = """
import sys
from sounding.training import steps as module
from sounding.cli import main
stop = int(sys.argv.pop(1))
exec(sys.argv.pop(1))
step = module.one_step
def one_step(run, state, *rest):
    if state.step == stop:
        signals.asked = True
    return step(run, state, *rest)
module.one_step = one_step
from contextlib import contextmanager
@contextmanager
def signals():
    yield lambda: signals.asked
signals.asked = False
module.stop_signals = signals
sys.exit(main(["train", *sys.argv[1:]]))
"""


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node={}")
ACCELERATE = (  # which starts several processes for accelerators only, whatever they compute on
    "accelerate.commands.launch", "--multi_gpu", "--num_processes={}", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
)  # fmt: skip


def launch(count, config, data, out, tmp_path, *, stop=-1, change="", by=TORCHRUN):
    """Start so many processes, one torch thread each, which first run the code `change`."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [
        sys.executable, "-m", *(part.format(count) for part in by), str(script), str(stop), change,
        "--config", str(tmp_path / "config.yaml"), "--data", str(data), "--out", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def assert_same(run, other):
    """What has no gradient but float noise Adam moves by up to its rate a step.

    So it goes with the score of a layer that is in every candidate.
    """
    ours, theirs = run.dynamic.state_dict(), other.dynamic.state_dict()
    for name, value in ours.items():
        scores = name.startswith(("policy.score", "policy.layer_scores"))
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-3, atol=3e-3 if scores else 2e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


def assert_same_losses(root, rtol=1e-4):
    """Of the runs in "one" and "two"."""
    one, two = (
        np.loadtxt(root / name / "log.csv", delimiter=",", skiprows=1) for name in ("one", "two")
    )
    np.testing.assert_allclose(one, two, rtol=rtol)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_with_the_same_batch(method, whisper, tones, tmp_path):
    config = replace(CONFIG, backbone=str(whisper), workers=int(method == "input"))
    teacher = str(tmp_path / "teacher") if method == "dld" else ""
    if teacher:
        train(replace(config, method="full"), load_folder(tones), teacher)
    config = replace(config, method=method, teacher=teacher)
    one = train(config, load_folder(tones), tmp_path / "one")
    done = launch(2, config, tones, tmp_path / "two", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_losses(tmp_path)
    two = load_run(tmp_path / "two")
    assert_same(one, two)
    assert not list((tmp_path / "two").glob("*checkpoint*"))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("dld", "i3d", "input", "idld")])
def test_a_batch_in_parts_is_a_batch_and_takes_less_at_once(
    method, whisper, tones, tmp_path, monkeypatch
):
    """The others learn from the mean of a part, or keep statistics of each."""
    config = replace(CONFIG, backbone=str(whisper), method=method, workers=int(method == "full"))
    one = train(replace(config, batch_size=9), load_folder(tones), tmp_path / "one")
    loss, at_once = METHODS[method].loss, []

    def noting(run, batch, *rest):
        at_once.append(len(batch[run.dynamic.main_input_name]))
        return loss(run, batch, *rest)

    monkeypatch.setattr(type(METHODS[method]), "loss", lambda self, *given: noting(*given))
    config = replace(config, batch_size=3, accumulate=3)
    two = train(config, load_folder(tones), tmp_path / "two")
    assert sorted(at_once) == [1, 1, 2] + [3] * 12
    assert_same_losses(tmp_path)
    assert_same(one, two)


@pytest.mark.parametrize("method", ["full", "i3d"])
def test_two_processes_with_batches_in_parts_train_as_one(method, whisper, tones, tmp_path):
    config = replace(CONFIG, backbone=str(whisper), method=method, batch_size=3)
    one = train(replace(config, batch_size=6), load_folder(tones), tmp_path / "one")
    done = launch(2, replace(config, accumulate=2), tones, tmp_path / "two", tmp_path)
    assert done.returncode == 0, done.stderr
    if method == "full":  # of i3d it is the mean gate of a part that is held at a half
        assert_same_losses(tmp_path)
        assert_same(one, load_run(tmp_path / "two"))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_every_clip_of_a_batch_weighs_alike_however_it_is_shared(count, pieces, size):
    rows = list(range(100, 100 + size))
    shares = [Processes(rank, count).share(rows, pieces) for rank in range(count)]
    assert len({len(parts) for parts in shares}) == 1  # all take part in each sum
    weights = dict.fromkeys(rows, 0.0)
    for part, weight in (one for parts in shares for one in parts):
        assert part
        for row in part:
            weights[row] += weight / len(part)
    np.testing.assert_allclose(list(weights.values()), 1 / size)
    if size >= count:
        taken = [row for parts in shares for part, _ in parts for row in part]
        assert sorted(taken) == rows


def test_two_processes_validate_as_one_and_each_reads_and_measures_its_share(
    whisper, tones, tmp_path
):
    config = replace(CONFIG, backbone=str(whisper), method="random", validate_epochs=0.5)
    one = train(config, load_folder(tones), tmp_path / "one")
    done = launch(2, config, tones, tmp_path / "two", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(one, load_run(tmp_path / "two"))
    ours, theirs = (read_validations(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert "read clips 20/20" in done.stderr  # of 40
    assert "read validation clips 4/4" in done.stderr


def test_two_processes_tell_of_all_bad_clips(whisper, tones, tmp_path):
    data = shutil.copytree(tones, tmp_path / "tones")
    for name in ("train3.wav", "train4.wav", "train7.wav"):
        (data / name).write_bytes(b"no audio")
    config = replace(CONFIG, backbone=str(whisper))
    done = launch(2, config, data, tmp_path / "run", tmp_path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "train3.wav" in line]
    assert said
    assert all("train4.wav" in done.stderr and "train7.wav" in done.stderr for _ in said)


def test_two_processes_sweep_as_one_and_one_of_them_writes(whisper, tones, tmp_path):
    config = replace(CONFIG, backbone=str(whisper))
    runs = []
    for method in ("random", "input"):
        runs.append(str(tmp_path / method))
        train(replace(config, method=method), load_folder(tones), runs[-1])
    options = ["sweep", *runs, "--data", str(tones), "--rounds", "1"]
    script = tmp_path / "worker.py"
    script.write_text("import sys\nfrom sounding.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    found, printed = [], []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        by = [part.format(count) for part in TORCHRUN]
        command = [sys.executable, "-m", *by, str(script), *options, "--json", str(out)]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append(len(done.stdout.splitlines()))
        found.append(Sweep.from_json(out))
    assert printed[0] == printed[1] > len(found[0].rows)
    one, two = found
    assert one.masks == two.masks
    for ours, theirs in zip(one.rows, two.rows, strict=True):
        assert replace(ours, latency_ms=0, latency_share=0) == replace(
            theirs, latency_ms=0, latency_share=0
        )
        assert (theirs.latency_ms is None) == (ours.latency_ms is None)


def test_accelerate_launch_starts_processes_that_train_as_one(whisper, tones, tmp_path):
    pytest.importorskip("accelerate")
    config = replace(CONFIG, backbone=str(whisper), method="full", device="cpu")
    one = train(config, load_folder(tones), tmp_path / "one")
    done = launch(2, config, tones, tmp_path / "two", tmp_path, by=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert_same(one, load_run(tmp_path / "two"))
    assert_same_losses(tmp_path)


def test_the_mean_gate_of_two_processes_is_that_of_the_whole_batch(
    whisper, tones, tmp_path, monkeypatch
):
    """Their penalty is no mean over clips: that of two halves is not that of both."""
    for owner, name in ((gates, "gumbel_like"), (METHODS["i3d"], "policy")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # back as they were after it
    exec(GATES, {})
    config = replace(CONFIG, backbone=str(whisper), method="i3d", gate_penalty=50.0)
    one = train(config, load_folder(tones), tmp_path / "one")
    done = launch(2, config, tones, tmp_path / "two", tmp_path, change=GATES)
    assert done.returncode == 0, done.stderr
    assert_same(one, load_run(tmp_path / "two"))
    assert_same_losses(tmp_path, rtol=1e-3)  # gates as steep as these make much of float noise


def test_a_training_goes_on_with_another_number_of_processes(whisper, tones, tmp_path):
    config = replace(CONFIG, backbone=str(whisper), method="input")
    one = train(config, load_folder(tones), tmp_path / "one")
    out = tmp_path / "two"
    done = launch(2, config, tones, out, tmp_path, stop=2)
    assert done.returncode != 0
    assert (out / "checkpoint.safetensors").exists(), done.stderr
    assert "stopped at step 3 of 6" in done.stderr
    assert_same(one, train(config, load_folder(tones), out))


def test_the_noise_of_a_clip_is_the_same_in_whatever_process():
    def drawn(places, step=0):
        with whole_batch((0, step), 5, places):
            return [gumbel_like(torch.zeros(len(places), 3)) for _ in range(2)]

    whole = drawn(range(5))
    for places in ([0, 2, 4], [1, 3]):
        for one, other in zip(drawn(places), whole, strict=True):
            assert torch.equal(one, other[places])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], drawn(range(5), step=1)[0])
    torch.manual_seed(0)
    free = gumbel_like(torch.zeros(5, 3))  # outside of a batch by the generator of torch
    torch.manual_seed(0)
    assert torch.equal(free, gumbel_like(torch.zeros(5, 3)))


def test_layers_that_a_step_dropped_hold_nothing_up_with_gradient_checkpointing(whisper, tones):
    """In data parallelism a skipped layer has no gradient; checkpointing runs layers twice."""
    from sounding.runs.run import new_run

    folder = load_folder(tones)
    run = new_run(replace(CONFIG, backbone=str(whisper), method="random"), list(folder.labels), {})
    clips = folder.split("train")[:4]
    batch = run.collate(run.read(clips, "read"))
    mask = torch.tensor([True, False, True, False])
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            run.dynamic.model.gradient_checkpointing_enable()
        run.dynamic.train()
        run.dynamic.zero_grad(set_to_none=True)
        run.dynamic(**batch, mask=mask).logits.square().sum().backward()
        Processes().add_gradients(run.dynamic.parameters())
        grads.append({n: p.grad for n, p in run.dynamic.named_parameters()})
    for name, value in grads[0].items():
        if value is None:
            assert grads[1][name] is None, name
        else:
            torch.testing.assert_close(value, grads[1][name], msg=name)
    dropped = run.dynamic.stack.layers[1]
    assert all(p.grad is None for p in dropped.parameters())
    assert isinstance(run.dynamic, sounding.DynamicModel)
