"""Plans: inputs that stop once they are sure, and gates before each layer."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_tree import adapted, count_runs, lengths_of, state_of, unlike
from tiny import inputs, make

import sounding
from sounding.budget import Budget
from sounding.data.folder import load_folder
from sounding.policies import Context, GateSelector
from sounding.policies.confidence import certainty, confidence
from sounding.policies.gates import LocalGates, SampledGates
from sounding.runs.config import TrainConfig
from sounding.runs.predict import predict_logits
from sounding.training.loop import train

FAMILIES = ["wav2vec2-post", "wavlm-post", "wav2vec2-bert-rotary", "whisper-classification", "ast"]
FRAMES = ["wav2vec2-pre", "hubert-post", "wav2vec2-bert-relative", "parakeet-ctc"]  # CTC
FIRST = torch.ones(4, 4, dtype=torch.bool).tril()


def batch_of(dynamic, name, padded=False, batch=6):
    lengths = lengths_of(name) * (batch // 3) if padded else None
    return unlike(dynamic, inputs(dynamic.model, batch=batch, lengths=lengths))


def alone(dynamic, batch, i):
    """Input i by itself, at its own length."""
    one = {key: value[i : i + 1] for key, value in batch.items()}
    mask = one.pop("attention_mask", None)
    if mask is not None:
        main = dynamic.main_input_name
        one[main] = one[main].narrow(dynamic.backbone.time, 0, int(mask.sum()))
    return one


def sureness(dynamic, batch):
    """After 1, 2 and 3 layers, by the answers of the first k. Shape: [3, batch]."""
    rows = []
    for mask in FIRST[:3]:
        highest = dynamic(**batch, mask=mask).logits.softmax(-1).amax(-1)
        rows.append(highest.view(len(highest), -1).mean(1))
    return torch.stack(rows)


def depths(sure, threshold):
    """After how many layers each input should stop. Shape: sure [3, batch] -> [batch]."""
    return torch.cat([sure >= threshold, torch.ones(1, sure.shape[1]).bool()]).int().argmax(0) + 1


def between(sure):
    """A threshold not too near to any value, at which inputs stop at many different depths."""
    ordered = sure.flatten().sort().values
    best = max(
        ((low + high) / 2 for low, high in pairwise(ordered.tolist()) if high - low > 1e-4),
        key=lambda threshold: len(depths(sure, threshold).unique()),
    )
    assert len(depths(sure, best).unique()) > 1
    return best


# --- mean budgets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "skip"),
    [(name, "adapter") for name in FAMILIES + FRAMES]
    + [(name, "identity") for name in FAMILIES + FRAMES[:3]],
)
@torch.no_grad()
def test_an_input_stops_once_it_is_sure_and_the_rest_goes_on(name, skip):
    dynamic = adapted(name) if skip == "adapter" else sounding.wrap(make(name)).eval()
    batch = batch_of(dynamic, name)
    sure = sureness(dynamic, batch)
    threshold = between(sure)
    depth = depths(sure, threshold)
    dynamic.mean_budgets = [(1.0, 0.0), (2.0, threshold), (4.0, 1.1)]
    rows, runs = count_runs(dynamic)
    out = dynamic(**batch, budget="mean:2")
    assert rows == [int((depth > index).sum()) for index in range(4)]
    assert max(runs) == 1
    assert rows == out.executed_layers.sum(0).tolist()
    assert torch.equal(out.executed_layers, torch.arange(4) < depth[:, None])
    for i in range(6):
        expected = dynamic(**batch, mask=FIRST[depth[i] - 1]).logits[i]
        torch.testing.assert_close(out.logits[i], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["whisper-classification", "hubert-post", "parakeet-ctc"])
@torch.no_grad()
def test_a_threshold_of_0_stops_all_after_a_layer_and_one_above_1_nobody(name):
    dynamic = sounding.wrap(make(name))
    batch = batch_of(dynamic, name, padded=True)
    dynamic.mean_budgets = [(1.0, 0.0), (4.0, 1.5)]
    rows, _ = count_runs(dynamic)
    one = dynamic(**batch, budget="mean:1")
    assert rows == [6, 0, 0, 0]
    assert torch.equal(one.logits, dynamic(**batch, mask=FIRST[0]).logits)
    rows[:] = [0] * 4
    for budget in ("mean:4", "mean:100%", " mean: 3.99"):
        assert torch.equal(dynamic(**batch, budget=budget).logits, dynamic(**batch).logits)
    assert rows == [36] * 4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", FAMILIES + FRAMES)
@torch.no_grad()
def test_an_input_stops_at_the_same_depth_alone_and_in_a_batch(name, padded):
    dynamic = adapted(name)
    batch = batch_of(dynamic, name, padded=padded and name != "ast")
    each = [sureness(dynamic, alone(dynamic, batch, i)) for i in range(6)]
    dynamic.mean_budgets = [(1.0, between(torch.cat(each, 1)))] * 2
    out = dynamic(**batch, budget="mean:1")
    assert len(out.executed_layers.sum(1).unique()) > 1
    for i in range(6):
        one = dynamic(**alone(dynamic, batch, i), budget="mean:1")
        assert torch.equal(one.executed_layers[0], out.executed_layers[i])
        mine = state_of(out)[i : i + 1, : one.logits.shape[1]]
        torch.testing.assert_close(mine, one.logits, rtol=2e-4, atol=2e-4)


@torch.no_grad()
def test_a_threshold_is_interpolated_between_calibrated_means():
    dynamic = sounding.wrap(make("ast"))
    dynamic.mean_budgets = [(1.0, 0.0), (2.0, 0.5), (4.0, 0.9)]
    budgets = [Budget.mean(mean) for mean in (1, 1.5, 2, 3, 4)] + [Budget.parse("mean:75%")]
    context = Context(4, 3, lambda *args: None, confidence)
    found = [dynamic.policy_for(one).plan(one, context).threshold for one in budgets]
    assert found == pytest.approx([0, 0.25, 0.5, 0.7, 0.9, 0.7])


def test_mean_budgets_that_are_not_allowed():
    dynamic = sounding.wrap(make("ast"))
    batch = inputs(dynamic.model)
    with pytest.raises(ValueError, match="no calibrated mean budgets"):
        dynamic(**batch, budget="mean:2")
    dynamic.mean_budgets = [(1.0, 0.0), (4.0, 1.1)]
    for budget in ("mean:9", "mean:0.5", "mean:20%"):
        with pytest.raises(ValueError, match="a mean budget is"):
            dynamic(**batch, budget=budget)
    for budget in ("mean:x", "mean:nan", "mean:", "mean:101%", "mean:0"):
        with pytest.raises(ValueError, match=r"not allowed: give .* a mean over inputs"):
            dynamic(**batch, budget=budget)
    with pytest.raises(ValueError, match="not both"):
        dynamic(**batch, budget="mean:2", mask=FIRST[0])
    with pytest.raises(ValueError, match="a list of budgets has"):
        dynamic(**batch, budget=["mean:2", 1, 1])


def test_models_that_cannot_say_how_sure_they_are_refuse_a_mean_budget():
    for name in ("wav2vec2-base-model", "moonshine-generation", "whisper-generation"):
        dynamic = sounding.wrap(make(name))
        dynamic.mean_budgets = [(1.0, 0.0), (4.0, 1.1)]
        with pytest.raises(ValueError, match=r"logits|decoder"):
            dynamic(**inputs(dynamic.model), budget="mean:2")
    dynamic.policy = GateSelector(32, 4)
    with pytest.raises(ValueError, match="no calibrated mean budgets"):  # those were of another
        dynamic(**inputs(dynamic.model), budget="mean:2")
    dynamic.mean_budgets = [(1.0, 0.0), (4.0, 1.1)]
    with torch.no_grad():
        assert dynamic(**inputs(dynamic.model), budget="mean:1").executed_layers.all()


@torch.no_grad()
def test_hidden_states_and_labels_go_with_a_mean_budget():
    dynamic = sounding.wrap(make("whisper-classification"))
    batch = batch_of(dynamic, "whisper-classification")
    threshold = between(sureness(dynamic, batch))
    dynamic.mean_budgets = [(2.0, threshold)]
    out = dynamic(**batch, budget="mean:2", output_hidden_states=True, labels=torch.zeros(6).long())
    assert torch.equal(out.logits, dynamic(**batch, budget="mean:2").logits)
    assert torch.isfinite(out.loss)
    assert len(out.hidden_states) == 5
    stopped = ~out.executed_layers[:, 2]
    assert torch.equal(out.hidden_states[2][stopped], out.hidden_states[3][stopped])


@torch.no_grad()
def test_an_error_in_a_readout_leaves_the_model_plain():
    dynamic = sounding.wrap(make("whisper-classification"))
    batch = inputs(dynamic.model)
    plain = dynamic(**batch).logits
    dynamic.mean_budgets = [(2.0, 0.5)]
    bomb = dynamic.model.classifier.register_forward_hook(lambda *args: 1 / 0)
    for call in (
        lambda: dynamic(**batch, budget="mean:2"),
        lambda: dynamic.forward_masks(batch, FIRST),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    bomb.remove()
    assert torch.equal(dynamic(**batch).logits, plain)
    assert torch.equal(sounding.unwrap(dynamic)(**batch).logits, plain)


@torch.no_grad()
def test_threads_that_stop_at_once_get_their_own_answers():
    dynamic = sounding.wrap(make("wav2vec2-post"))
    batches = [inputs(dynamic.model, seed=seed) for seed in range(4)]
    dynamic.mean_budgets = [(2.0, between(torch.cat([sureness(dynamic, b) for b in batches], 1)))]
    expected = [dynamic(**batch, budget="mean:2") for batch in batches]
    trees = [dynamic.forward_masks(batch, FIRST).logits for batch in batches]
    barrier, wrong = threading.Barrier(4), []

    def work(i):
        torch.set_grad_enabled(False)
        barrier.wait()
        try:
            for _ in range(15):
                out = dynamic(**batches[i], budget="mean:2")
                if not torch.equal(out.executed_layers, expected[i].executed_layers):
                    wrong.append((i, "layers"))
                if not torch.equal(out.logits, expected[i].logits):
                    wrong.append((i, "logits"))
                if not torch.equal(dynamic.forward_masks(batches[i], FIRST).logits, trees[i]):
                    wrong.append((i, "tree"))
        except Exception as error:
            wrong.append((i, repr(error)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_confidence_is_the_highest_probability_and_for_frames_its_mean_over_the_valid_ones():
    logits = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 1.0]]).log()  # 3/5 and 1/3
    torch.testing.assert_close(confidence(logits), torch.tensor([0.6, 1 / 3]))
    valid = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(
        confidence(logits.expand(2, 2, 3), valid), torch.tensor([7 / 15, 0.6])
    )


def test_of_several_classes_each_is_a_yes_or_no():
    logits = torch.tensor([[0.0, -3.0], [2.0, 3.0]])
    torch.testing.assert_close(confidence(logits, several=True), logits.amax(-1).sigmoid())
    p = logits.sigmoid().double()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean(-1)
    torch.testing.assert_close(certainty(logits, several=True).double(), -entropy)
    assert torch.isfinite(certainty(torch.tensor([[90.0, -200.0]]), several=True)).all()


@torch.no_grad()
def test_a_mean_budget_of_several_classes_stops_by_the_surest_yes():
    model = make("ast", problem_type="multi_label_classification")
    dynamic = sounding.wrap(model, "first", exits=True)
    for parameter in dynamic.exits.parameters():
        parameter.normal_(std=0.3)
    batch = inputs(model, batch=8)
    exits = [dynamic(**batch, budget=k).logits for k in (1, 2, 3)]
    yes = torch.stack([logits.sigmoid().amax(-1) for logits in exits])
    one_of = torch.stack([logits.softmax(-1).amax(-1) for logits in exits])
    threshold = between(yes)
    assert not torch.equal(depths(yes, threshold), depths(one_of, threshold))
    dynamic.mean_budgets = [(1.0, 0.0), (2.0, threshold), (4.0, 1.1)]
    executed = dynamic(**batch, budget="mean:2").executed_layers
    assert torch.equal(executed.sum(1), depths(yes, threshold))


def test_a_run_with_exits_answers_a_mean_budget_by_the_exit_where_each_input_stopped(
    tones, whisper, tmp_path
):
    config = TrainConfig(
        backbone=str(whisper), method="early-exit", epochs=1, batch_size=8, precision="fp32"
    )
    run = train(config, load_folder(tones), tmp_path / "run")
    clips = run.read(load_folder(tones).split("test"), "test")
    with torch.no_grad():
        for norm in (run.dynamic.base.layer_norm, *run.dynamic.stack.layers):
            for parameter in norm.parameters():  # a norm that shows where there is one too many
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.manual_seed(3)))
    batch = run.collate(clips)
    exits = [predict_logits(run, batch, k)[0] for k in (1, 2, 3, 4)]
    sure = torch.stack([x.softmax(-1).amax(-1) for x in exits[:3]])
    threshold = between(sure)
    run.dynamic.mean_budgets = [(1.0, 0.0), (2.0, threshold), (4.0, 1.1)]
    rows, _ = count_runs(run.dynamic)
    logits, executed = predict_logits(run, batch, "mean:2")
    depth = executed.sum(1)
    assert rows == executed.sum(0).tolist()
    assert torch.equal(depth, depths(sure, threshold))
    for i, k in enumerate(depth.tolist()):
        torch.testing.assert_close(logits[i], exits[k - 1][i], rtol=1e-4, atol=1e-4)
    for mean, k in (("mean:1", 1), ("mean:4", 4)):
        torch.testing.assert_close(predict_logits(run, batch, mean)[0], exits[k - 1])


# --- gates ----------------------------------------------------------------------------------


def gated(scope, name="whisper-classification", skip="identity", spread=1.0, seed=5, **options):
    """A wrapped model whose gates depend on the input and are open about half of the time."""
    torch.manual_seed(seed)
    selector = GateSelector(32, 4, scope=scope)
    for score in selector.score:
        torch.nn.init.normal_(score.weight, std=spread)
        torch.nn.init.normal_(score.bias, std=0.3)
    return sounding.wrap(make(name, **options), selector, skip=skip).eval()


def gates_of(dynamic, batch):
    """The logits of the "global" gates. Shape: [batch, layers]."""
    read = dynamic.forward_masks(batch, FIRST[:1])
    return dynamic.policy.logits(read.features, read.frame_mask)


@torch.no_grad()
def test_global_gates_keep_the_k_most_open_ones():
    dynamic = gated("global")
    batch = inputs(dynamic.model, lengths=[61, 98, 37])
    order = gates_of(dynamic, batch).argsort(1, descending=True)
    rows, _ = count_runs(dynamic)
    for budget in ([1, 2, 3], [4, 1, 2], [3, 3, 1]):
        rows[:] = [0] * 4
        out = dynamic(**batch, budget=budget)
        for i, k in enumerate(budget):
            kept = set(out.executed_layers[i].nonzero().flatten().tolist())
            assert kept == set(order[i, :k].tolist())
        assert rows == out.executed_layers.sum(0).tolist()


@pytest.mark.parametrize("skip", ["identity", "adapter"])
@torch.no_grad()
def test_local_gates_keep_exactly_k_in_order_by_what_enters_each_layer(skip):
    masks = set()
    for seed, budget in enumerate((1, 2, 2, 3, 4, [1, 2, 3, 4] * 3, [4, 1, 1, 2] * 3)):
        dynamic = gated("local", skip=skip, seed=seed)
        batch = unlike(dynamic, inputs(dynamic.model, batch=12))
        rows, _ = count_runs(dynamic)
        out = dynamic(**batch, budget=budget, output_hidden_states=True)
        k = torch.tensor(budget).expand(12) if isinstance(budget, int) else torch.tensor(budget)
        ran = out.executed_layers
        assert ran.sum(1).tolist() == k.tolist()
        assert rows == ran.sum(0).tolist()
        masks |= {tuple(mask) for mask in ran.tolist()}
        for i in range(4):  # an open gate is kept while some are left; a closed one if it must be
            used, left = ran[:, :i].sum(1), 4 - i
            logit = dynamic.policy.logits(out.hidden_states[i], None, i)[:, 0]
            assert torch.equal(ran[:, i], ((logit > 0) & (used < k)) | (k - used >= left))
    assert len(masks) > 6


@pytest.mark.parametrize("scope", ["global", "local"])
@torch.no_grad()
def test_gates_above_a_threshold_are_kept_and_one_at_least(scope):
    dynamic = gated(scope)
    batch = unlike(dynamic, inputs(dynamic.model, batch=12))
    counts = []
    for threshold in (-1e6, -1.0, 0.0, 1.0, 1e6):
        dynamic.mean_budgets = [(2.0, threshold)]
        rows, _ = count_runs(dynamic)
        ran = dynamic(**batch, budget="mean:2").executed_layers
        assert rows == ran.sum(0).tolist()
        assert ran.any(1).all()
        counts.append(int(ran.sum()))
        if scope == "global":
            gates = gates_of(dynamic, batch)
            best = gates == gates.amax(1, keepdim=True)
            assert torch.equal(ran, (gates > threshold) | best)
        elif threshold == 1e6:
            assert ran.int().tolist() == [[0, 0, 0, 1]] * 12
    assert counts[0] == 48
    assert counts[-1] == 12
    if scope == "global":  # with local gates what comes later depends on what was kept
        assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 2


@pytest.mark.parametrize("scope", ["global", "local"])
def test_sampled_gates_reach_every_gate_and_every_layer(scope):
    dynamic = gated(scope, spread=0.1).train()
    gates = SampledGates(dynamic.policy)
    rows, _ = count_runs(dynamic)
    out = dynamic.forward_plan(inputs(dynamic.model, batch=6), gates.plan())
    assert rows == [6] * 4
    assert [tuple(soft.shape) for soft in gates.soft] == [(6,)] * 4
    out.logits.square().mean().backward()
    for score in dynamic.policy.score:
        assert score.weight.grad.flatten(1).any(1).all()
    for project in dynamic.policy.project:
        assert project.weight.grad.any()
    for layer in dynamic.stack.layers:
        assert any(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("skip", ["identity", "norm"])
def test_a_closed_gate_passes_what_a_skipped_layer_would(skip):
    """In training, where all layers run, as afterwards, where the closed ones do not."""
    dropouts = ("attention", "hidden", "activation", "feat_proj", "final")
    still = {f"{name}_dropout": 0.0 for name in dropouts}
    dynamic = gated("global", "wav2vec2-post", skip, spread=0.1, **still).train()
    batch = inputs(dynamic.model, batch=6)
    entered, came_out = [], []
    for layer in dynamic.stack.layers:
        layer.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
        layer.register_forward_hook(lambda module, args, out: came_out.append(out.detach()))
    plan, is_open = SampledGates(dynamic.policy).plan(), []

    def noting(index, state, frame_mask):
        keep, weight = plan(index, state, frame_mask)
        is_open.append(weight.detach() > 0.5)
        return keep, weight

    torch.manual_seed(3)
    logits = dynamic.forward_plan(batch, noting).logits
    mask = torch.stack(is_open, 1)
    assert mask.any(0).all()
    assert not mask.all(0).all()
    for index in range(3):
        state = torch.where(
            mask[:, index, None, None],
            came_out[index],
            dynamic.skip(index, dynamic.stack.layers[index], entered[index]),
        )
        assert torch.equal(entered[index + 1], state)
    mask[~mask.any(1), 0] = True
    same = torch.stack(is_open, 1).any(1)
    torch.testing.assert_close(logits[same], dynamic(**batch, mask=mask).logits[same])


def test_the_gradient_of_a_sampled_gate_is_the_effect_of_its_layer():
    """A linear head over the last layer: d loss / d gate = loss(open) - loss(closed)."""
    dynamic = sounding.wrap(make("wav2vec2-base-model", num_hidden_layers=2))
    batch = inputs(dynamic.model)
    gates = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    direction = torch.randn(32)

    def loss(out):
        return (out.last_hidden_state @ direction).mean(1)

    plan = lambda index, state, mask: (torch.ones(3, dtype=torch.bool), gates[:, index])  # noqa: E731
    value = loss(dynamic.forward_plan(batch, plan))
    value.sum().backward()
    with torch.no_grad():
        one = loss(dynamic(**batch, mask=torch.tensor([True, False])))
        both = loss(dynamic(**batch))
    torch.testing.assert_close(gates.grad[:, 1], both - one, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, torch.where(gates[:, 1] > 0.5, both, one))


def test_a_local_plan_starts_anew_with_each_pass():
    selector = GateSelector(8, 4, scope="local").eval()
    plan = LocalGates(selector, torch.tensor([1, 3]))
    states = torch.randn(4, 2, 5, 8)
    for _ in range(2):
        kept = torch.stack([plan(i, states[i], None)[0] for i in range(4)], 1)
        assert kept.sum(1).tolist() == [1, 3]
    assert isinstance(selector.above(0.0), LocalGates)


def test_a_gate_selector_of_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="global"):
        GateSelector(8, 4, scope="far")


def test_training_by_sampled_gates_moves_the_gates(tones, whisper, tmp_path):
    for gates in ("global", "local"):
        config = TrainConfig(backbone=str(whisper), method="i3d", gates=gates, epochs=2)
        config = replace(config, batch_size=8, gate_penalty=50.0, lr_selector=0.05)
        run = train(config, load_folder(tones), tmp_path / gates)
        biases = torch.cat([score.bias.detach() for score in run.dynamic.policy.score])
        assert (biases < 1.0).all()  # open at the start; the penalty closes them to half
