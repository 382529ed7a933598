"""A policy that predicts from the state how many layers an input needs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import tiny
import torch

import sounding
from sounding.cli import main
from sounding.errors import UsageError
from sounding.methods.depths import REPORT, compared, fit
from sounding.policies import PredictedDepth, StaticScores
from sounding.policies.pooling import pool
from sounding.policies.predicted import cheapest
from sounding.runs.calibrate import calibrate_prices

SCORES = torch.tensor([3.0, 0.0, 2.0, 1.0])  # layers 0, 2, 3, 1
LAYERS, WIDTH, LEAST = 4, 32, 2
MEANS = [2.25, 2.5, 3.0, 3.5, 3.75]


def states(clips, seed):
    """Pooled states, and costs whose need for depth one of their channels says."""
    rng = np.random.default_rng(seed)
    pooled = torch.from_numpy(rng.normal(3, 2, (clips, 2 * WIDTH))).float()
    hard = 1.5 * (pooled[:, 5] - 3) / 2
    logs = hard[:, None] - torch.tensor([0.0, 1.0, 2.0]) + 0.3 * torch.randn(clips, 3)
    return pooled, logs.exp()


def fitted(pooled, costs):
    found = fit(pooled, costs)
    policy = PredictedDepth(SCORES, WIDTH, after=1, least=LEAST)
    for name in ("center", "spread", "slopes", "offsets"):
        getattr(policy, name).copy_(getattr(found, name))
    return policy.eval(), found


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def dynamic():
    """A tiny Whisper whose policy spreads random inputs over its depths."""
    made = sounding.wrap(tiny.make("whisper-generation"), StaticScores(SCORES))
    made.trained = True
    with torch.no_grad():
        batch = tiny.inputs(made.model, batch=40)
        pooled = pool(made.layer_outputs(only(batch), 1)[0][0][0], None)
    policy = PredictedDepth(SCORES, WIDTH, after=1, least=LEAST)
    policy.center.copy_(pooled.mean(0))
    policy.spread.copy_(pooled.std(0))
    policy.slopes.copy_(0.3 * torch.randn(policy.slopes.shape))
    policy.mean_budgets = calibrate_prices(policy.costs(pooled), LEAST)
    made.policy = policy.eval()
    return made.eval()


def only(batch):
    return {"input_features": batch["input_features"]}


def ran(dynamic, batch, budget):
    with torch.no_grad():
        return dynamic(**batch, budget=budget).executed_layers


@pytest.mark.parametrize("k", range(1, LAYERS + 1))
def test_an_exact_budget_keeps_the_layers_of_static_scores(dynamic, k):
    """Also fewer than it reads after, and without running what it does not keep."""
    batch = tiny.inputs(dynamic.model)
    scores = -SCORES if k == 1 else SCORES  # layer 0 last
    static = sounding.wrap(tiny.make("whisper-generation"), StaticScores(scores))
    static.trained = True
    if k == 1:
        dynamic.policy.layer_scores = torch.nn.Parameter(scores, requires_grad=False)
    calls = count(dynamic)
    with torch.no_grad():
        one, other = dynamic(**batch, budget=k), static(**batch, budget=k)
    assert torch.equal(one.executed_layers, other.executed_layers)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(dynamic.policy.fixed_mask(k), one.executed_layers[0])
    assert calls == (3 * one.executed_layers[0]).tolist()


def count(dynamic):
    rows = [0] * LAYERS
    for index, layer in enumerate(dynamic.stack.layers):
        layer.register_forward_hook(
            lambda module, args, out, index=index: rows.__setitem__(
                index, rows[index] + len(args[0])
            )
        )
    return rows


def test_a_mean_budget_executes_what_it_says_and_comes_out(dynamic):
    batch = tiny.inputs(dynamic.model, batch=40)
    rows = count(dynamic)
    for mean in MEANS:
        rows[:] = [0] * LAYERS
        executed = ran(dynamic, batch, f"mean:{mean}")
        assert rows == executed.sum(0).tolist()
        assert sum(rows) / 40 == pytest.approx(mean, abs=0.05)
        kept = executed.sum(1)
        assert len(set(kept.tolist())) > 1  # the inputs differ
        for k in kept.unique().tolist():  # and are those of the scores
            mask = dynamic.policy.fixed_mask(k)
            assert torch.equal(executed[kept == k], mask.expand(int((kept == k).sum()), -1))


def test_an_input_gets_the_same_depth_alone_and_in_any_batch(dynamic):
    batch = tiny.inputs(dynamic.model, batch=40)
    together = ran(dynamic, batch, "mean:3")
    for row in range(0, 40, 5):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        assert torch.equal(ran(dynamic, alone, "mean:3")[0], together[row])
    turned = {name: value.flip(0) for name, value in batch.items()}
    assert torch.equal(ran(dynamic, turned, "mean:3").flip(0), together)


def test_a_decoder_writes_from_the_layers_that_were_chosen(dynamic):
    batch = only(tiny.inputs(dynamic.model, batch=6))
    asked = {"max_new_tokens": 4, "return_dict_in_generate": True}
    mean = dynamic.generate(**batch, budget="mean:3", **asked)
    kept = mean["executed_layers"].sum(1).tolist()
    assert len(set(kept)) > 1
    exact = dynamic.generate(**batch, budget=kept, **asked)
    assert torch.equal(mean["executed_layers"], exact["executed_layers"])
    assert torch.equal(mean["sequences"], exact["sequences"])


def test_a_readable_need_for_depth_is_learned_and_beats_one_depth_for_all():
    policy, found = fitted(*states(400, 1))
    assert found.error < 0.2  # of a noise of 0.09
    pooled, costs = states(400, 2)
    predicted = policy.costs(pooled)
    assert float(predicted.mean()) == pytest.approx(float(costs.mean()), rel=0.3)
    for mean, price in calibrate_prices(policy.costs(states(400, 3)[0]), LEAST)[1:-1]:
        kept = cheapest(predicted, price, LEAST)
        assert float(kept.float().mean()) == pytest.approx(mean, abs=0.2)
        worth = {name: float(v.mean()) for name, v in compared(costs, kept, LEAST).items()}
        assert worth["oracle"] <= worth["predicted"] < 0.9 * worth["static"]
        assert worth["predicted"] < 0.9 * worth["shuffled"]


def test_a_need_that_no_state_tells_is_predicted_as_the_same_for_all():
    """So that noise does not pass for a choice."""
    pooled, costs = states(300, 1)
    policy, found = fitted(pooled, costs[torch.randperm(300)])
    spread = policy.costs(pooled).log().std(0)
    assert bool((spread < 0.5).all())  # the costs themselves have 1.5
    assert found.strength >= 1


def test_what_the_controls_say():
    costs = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    kept = torch.tensor([3, 2])
    worth = compared(costs, kept, LEAST)
    assert worth["predicted"].tolist() == [1, 1]
    assert worth["shuffled"].tolist() == [2.5, 1]
    assert worth["static"].tolist() == [2.5, 1]  # half at 2, half at 3
    assert float(worth["oracle"].sum()) == 2
    worth = compared(costs, torch.tensor([2, 4]), LEAST)
    assert worth["static"].tolist() == [1, 1]  # 3 for both
    assert worth["oracle"].tolist() == [0, 1]
    hollow = compared(torch.tensor([[3.0, 3.0, 0.0]] * 2), torch.tensor([3, 3]), LEAST)
    assert hollow["static"].tolist() == [1.5, 1.5]  # half at 2, half at 4
    for same in (2, 4):  # at an end there is nothing to choose
        for values in compared(costs, torch.tensor([same, same]), LEAST).values():
            assert values.tolist() == costs[:, same - LEAST].tolist()


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_model_chooses_the_same(dynamic, tmp_path, half):
    """Also in half precision, in which parts are written."""
    found = fit(*states(100, 1))  # as fitted, for half precision
    for name in ("center", "spread", "slopes", "offsets"):
        getattr(dynamic.policy, name).copy_(getattr(found, name))
    batch = tiny.inputs(dynamic.model, batch=40)
    pooled = pool(dynamic.layer_outputs(only(batch), 1)[0][0][0], None).detach()
    dynamic.policy.mean_budgets = calibrate_prices(dynamic.policy.costs(pooled), LEAST)
    if half:
        dynamic.policy.half()
    dynamic.save_pretrained(tmp_path)
    loaded = sounding.load(tmp_path)
    dynamic.policy.float()
    assert loaded.policy.config() == dynamic.policy.config()
    assert loaded.mean_budgets == dynamic.mean_budgets
    for budget in (1, 3, "mean:2.5", "mean:3.5"):
        assert torch.equal(ran(loaded, batch, budget), ran(dynamic, batch, budget))


def test_a_mean_budget_that_cannot_be_kept_says_what_to_do(dynamic):
    batch = tiny.inputs(dynamic.model)
    with pytest.raises(UsageError, match='from 2 to 4 layers; give "mean:2" or more'):
        ran(dynamic, batch, "mean:1.5")
    with pytest.raises(UsageError, match="from 1 to 4"):
        ran(dynamic, batch, "mean:5")
    fresh = sounding.wrap(tiny.make("whisper-generation"), "predicted")
    with pytest.raises(UsageError, match="sounding calibrate RUN --data DIR"):
        ran(fresh, batch, "mean:3")
    for wrong in ({"after": 3, "least": 2}, {"least": 0}, {"least": 5}):
        with pytest.raises(UsageError, match="after and least"):
            PredictedDepth(SCORES, WIDTH, **wrong)
    with pytest.raises(UsageError, match="clips to fit depths to"):
        fit(*states(5, 1))


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A run of `sounding distill` on noises, with clips for validation."""
    root = tmp_path_factory.mktemp("depths")
    tiny.save_speaker(root / "speaker")
    model = tiny.make("whisper-generation", max_target_positions=64)
    model.generation_config.max_length = 50
    model.save_pretrained(root / "speaker")
    rng = np.random.default_rng(0)
    (root / "audio").mkdir()
    rows = ["file_name,text,split"]
    for index in range(30):
        sound = rng.normal(0, 0.02 * (1 + index % 7), int(16000 * (0.2 + 0.01 * index)))
        sf.write(root / "audio" / f"{index}.wav", sound, 16000)
        rows.append(f"{index}.wav,lo hi,{'train' if index % 3 else 'validation'}")
    (root / "audio" / "metadata.csv").write_text("\n".join(rows) + "\n")
    command = ["distill", str(root / "speaker"), "--data", str(root / "audio")]
    command += ["--out", str(root / "run"), "--epochs", "1"]
    assert main(command) == 0
    return root


def test_the_command_makes_mean_budgets_of_a_distilled_run(distilled, capsys):
    run, audio = distilled / "run", distilled / "audio"
    before = sounding.load(run / "model")
    batch = only(tiny.inputs(before.model, batch=8))
    batch["input_features"] = batch["input_features"][..., :80]
    asked = {"max_new_tokens": 3, "return_dict_in_generate": True}
    with pytest.raises(UsageError, match="which a decoder does not give"):
        before.generate(**batch, budget="mean:3", **asked)
    for _ in range(2):  # again on what it made
        assert main(["calibrate", str(run), "--data", str(audio)]) == 0
        assert "mean:3.5" in capsys.readouterr().out
        after = sounding.load(run / "model")
        report = json.loads((run / REPORT).read_text())
        assert after.policy.kind == "predicted"
        assert after.policy.least == report["least"] == 2
        assert report["clips"] == {"train": 20, "validation": 10}
        assert [mean for mean, _ in after.mean_budgets] == [2 + step / 4 for step in range(9)]
        for k in range(1, LAYERS + 1):
            one, other = (m.generate(**batch, budget=k, **asked) for m in (before, after))
            assert torch.equal(one["sequences"], other["sequences"])
            assert torch.equal(one["executed_layers"], other["executed_layers"])
        made = after.generate(**batch, budget="mean:3", **asked)
        assert set(made["executed_layers"].sum(1).tolist()) <= {2, 3, 4}


def test_costs_are_those_of_a_clip_by_itself_at_the_depth_that_runs(distilled):
    """Measured once more with the model's own call: the same changes, silence and tokens."""
    from sounding.data.features import load_features
    from sounding.data.folder import load_folder
    from sounding.methods.depths import TAIL, measure
    from sounding.methods.teaching import teacher_outputs
    from sounding.runs.run import load_run
    from sounding.tasks.base import Target

    run = load_run(distilled / "run")
    clips = load_folder(distilled / "audio").split("train")[:4]
    lessons = teacher_outputs(run, clips, distilled / "run" / "teacher")
    masks = torch.stack([run.dynamic.policy.fixed_mask(k) for k in (2, 3, 4)])
    found = measure(run, clips, lessons, masks, [0], "")
    for row, clip in enumerate(clips):
        (features,) = load_features([clip], run.extractor, max_seconds=None)
        heard = torch.from_numpy(np.asarray(features)).T[None]
        silence = heard.min().expand(1, heard.shape[1], TAIL + heard.shape[2] % 2)
        window = run.dynamic.backbone.window(run.dynamic.base)
        heard = torch.cat([heard, silence], 2)[..., :window]
        lesson = lessons[row]
        target = Target(tuple(lesson.ids.tolist()), "")
        before = run.task.inputs({"input_features": heard}, [target])
        for place, k in enumerate((2, 3, 4)):
            with torch.no_grad():
                logits = run.dynamic(**before, budget=k).logits
            (given,) = run.task.counted(logits, None, [target])
            each = run.task.imitation(given, lesson.values, lesson.labels, lesson.total)
            cost = (each * run.task.emphasis(lesson.labels[:, 0])).sum()
            torch.testing.assert_close(found.costs[row, place], cost, rtol=1e-4, atol=1e-5)


def test_the_command_says_what_it_is_for(distilled, capsys, tmp_path):
    run = str(distilled / "run")
    assert main(["calibrate", run]) == 2
    assert "give audio to fit its depths to by --data DIR" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path), "--data", str(distilled / "audio")]) == 2
    assert "--data is for a run" in capsys.readouterr().err
    assert main(["calibrate", run, "--data", str(distilled / "audio"), "--clips", "5"]) == 2
    assert "give 10 or more" in capsys.readouterr().err


def test_the_benchmark_compares_choices_at_the_same_mean(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    try:
        depth = importlib.import_module("depth")
    finally:  # so that no other test takes one of them for its own
        sys.modules.pop("whisper", None)
        sys.modules.pop("depth", None)
    errors = np.array([[4.0, 1.0, 0.0], [1.0, 1.0, 1.0]] * 10)
    words, seconds = np.full(20, 5.0), np.array([1.0, 3.0] * 10)
    names = [str(index) for index in range(20)]
    counted = depth.Counted(errors, {3.0: [4, 2] * 10}, LEAST, words, seconds, names, {})
    found = depth.summary(counted, seed=0)
    assert {k: wer for k, (wer, *_) in found["depths"].items()} == {"2": 0.5, "3": 0.2, "4": 0.1}
    (row,) = found["rows"]
    assert (row["kept"], row["kept_by_seconds"]) == (3, 2.5)
    assert row["clips_by_kept"] == {"2": 10, "4": 10}
    means = {name: wer for name, (wer, *_) in row["wer"].items()}
    assert means == pytest.approx({"predicted": 0.1, "static": 0.2, "shuffled": 0.3, "oracle": 0.1})
    mean, low, high = row["difference"]["static"]
    assert mean == pytest.approx(-0.1)
    assert low < mean < high < 0
