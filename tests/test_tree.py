"""Several masks at once, what stands in for a skipped layer, and a selector behind layer 0."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import MODELS, inputs, make
from torch import nn

import sounding
from sounding.model.skip import RANK, SkipPath
from sounding.policies import InputSelector, StaticScores
from sounding.policies.plans import Gates, UpFront
from sounding.policies.pooling import pool

ALL = torch.tensor([m for m in itertools.product((False, True), repeat=4) if any(m)])
SOME = ALL[[0, 3, 6, 8, 10, 13, 14]]
MIXED = torch.tensor(
    [[True, False, True, True], [False, True, False, False], [True, True, False, True]]
)
WITHOUT_LOGITS = ("wav2vec2-base-model", "wav2vec2-bert-key", "moonshine-model", "parakeet-encoder")
ANSWERING = [name for name in MODELS if name not in WITHOUT_LOGITS]
PADDED = [n for n in MODELS if n not in ("ast", "whisper-generation")]


def lengths_of(name):
    known = {"whisper": [61, 98, 37], "2-bert": [9, 24, 17], "parakeet": [41, 96, 73]}
    return next((known[part] for part in known if part in name), [2100, 4000, 3333])


def adapted(name, **options):
    """A wrapped model whose adapters are far from the identity."""
    dynamic = sounding.wrap(make(name), skip="adapter", **options).eval()
    shake(dynamic.skip)
    return dynamic


def shake(skip):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in skip.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def count_runs(dynamic):
    """The inputs that each layer saw, and how often it ran."""
    rows, runs = [0] * dynamic.num_layers, [0] * dynamic.num_layers

    def hook(index):
        def count(module, args, output):
            rows[index] += args[0].shape[0]
            runs[index] += 1

        return count

    for index, layer in enumerate(dynamic.stack.layers):
        layer.register_forward_hook(hook(index))
    return rows, runs


def unlike(dynamic, batch):
    """The same batch with inputs that differ in the mean over time too."""
    value = batch[dynamic.main_input_name]
    if value.ndim == 2:
        value = value * torch.linspace(0.05, 3, len(value))[:, None]
    else:
        offset = torch.randn(value.shape, generator=torch.manual_seed(2))
        value = value + 5 * offset.narrow(dynamic.backbone.time, 0, 1)
    return {**batch, dynamic.main_input_name: value}


def state_of(out):
    return next(v for k, v in out.items() if k in ("logits", "last_hidden_state"))


# --- a tree of masks ------------------------------------------------------------------------


@pytest.mark.parametrize("skip", ["identity", "adapter"])
@pytest.mark.parametrize("name", ANSWERING)
@torch.no_grad()
def test_each_answer_of_a_tree_is_bit_identical_to_that_of_its_mask(name, skip):
    dynamic = adapted(name) if skip == "adapter" else sounding.wrap(make(name))
    batches = [inputs(dynamic.model)]
    if name in PADDED:
        batches.append(inputs(dynamic.model, lengths=lengths_of(name)))
    for batch in batches:
        found = dynamic.forward_masks(batch, SOME).logits
        assert len({tuple(row.flatten().tolist()) for row in found}) == len(SOME)
        for mask, logits in zip(SOME, found, strict=True):
            assert torch.equal(logits, dynamic(**batch, mask=mask).logits)
    assert torch.equal(dynamic(**batches[0]).logits, make(name)(**batches[0]).logits)


@pytest.mark.parametrize("name", ["whisper-classification", "wavlm-post", "ast"])
@torch.no_grad()
def test_shared_prefixes_run_once(name):
    dynamic = sounding.wrap(make(name))
    batch = inputs(dynamic.model)
    rows, runs = count_runs(dynamic)
    dynamic.forward_masks(batch, ALL)
    assert runs == [1, 2, 4, 8]  # 15, in place of 8 * 4
    assert rows == [3, 6, 12, 24]
    order = torch.randperm(15, generator=torch.manual_seed(0))
    assert torch.equal(
        dynamic.forward_masks(batch, ALL[order]).logits,
        dynamic.forward_masks(batch, ALL).logits[order],
    )
    runs[:] = [0] * 4
    dynamic.forward_masks(batch, torch.ones(4, 4, dtype=torch.bool).tril())
    assert runs == [1, 1, 1, 1]


def test_masks_that_are_not_allowed_in_a_tree():
    dynamic = sounding.wrap(make("ast"))
    batch = inputs(dynamic.model)
    for masks, match in (
        (MIXED[[0, 1, 0]], "differ"),
        (torch.zeros(1, 4, dtype=torch.bool), "at least one layer"),
        (torch.ones(2, 3, dtype=torch.bool), "a mask is"),
        (torch.ones(2, 4), "a mask is"),
    ):
        with pytest.raises(ValueError, match=match):
            dynamic.forward_masks(batch, masks)
    dynamic.policy = InputSelector(32, 4, after=1)
    with pytest.raises(ValueError, match="before the policy reads"):
        dynamic.forward_masks(batch, MIXED[1:2])
    dynamic.forward_masks(batch, MIXED)


def test_what_a_tree_cannot_answer_is_refused():
    dynamic = sounding.wrap(make("whisper-generation"))
    with pytest.raises(ValueError, match="one length"):  # as a call
        dynamic.forward_masks(inputs(dynamic.model, lengths=[61, 98, 37]), SOME)
    dynamic = sounding.wrap(make("whisper-classification", use_weighted_layer_sum=True))
    with pytest.raises(ValueError, match="use_weighted_layer_sum"):
        dynamic.forward_masks(inputs(dynamic.model), SOME)
    dynamic = sounding.wrap(make("wav2vec2-base-model"))
    with pytest.raises(ValueError, match="logits"):
        dynamic.forward_masks(inputs(dynamic.model), SOME)
    assert dynamic(**inputs(dynamic.model)).last_hidden_state.shape[0] == 3  # plain again


@torch.no_grad()
def test_a_tree_gives_what_the_selector_reads():
    dynamic = sounding.wrap(make("whisper-classification"))
    batch = inputs(dynamic.model, lengths=[61, 98, 37])
    seen = []
    for layer in dynamic.stack.layers[:2]:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    dynamic.forward_masks(batch, MIXED[2:])
    for after in (0, 1):
        dynamic.policy = InputSelector(32, 4, after=after)
        out = dynamic.forward_masks(batch, MIXED)
        assert torch.equal(out.features, seen[after])
        assert out.frame_mask.sum(1).tolist() == [31, 49, 19]


@pytest.mark.parametrize("name", ["whisper-classification", "wav2vec2-pre", "parakeet-ctc"])
def test_the_gradients_of_a_tree_are_the_sums_of_those_of_its_masks(name):
    batch = inputs(make(name), lengths=lengths_of(name))

    def gradients(dynamic):
        return {n: p.grad for n, p in dynamic.named_parameters() if p.grad is not None}

    together, apart = adapted(name), adapted(name)
    together.forward_masks(batch, SOME).logits.square().mean((1, *range(2, 4))[:2]).sum().backward()
    for mask in SOME:
        logits = apart(**batch, mask=mask).logits
        logits.square().mean((0, 1)).sum().backward()
    one, other = gradients(together), gradients(apart)
    assert one.keys() == other.keys()
    assert sum("skip." in key for key in one) == 4
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=2e-3, atol=1e-4, msg=key)


# --- adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_adapters_start_as_the_identity_and_never_touch_full_depth(name):
    dynamic = sounding.wrap(make(name), skip="adapter")
    batch = inputs(dynamic.model)
    plain = state_of(make(name)(**batch))
    mask = torch.tensor([False, True, False, True])
    skipping = state_of(sounding.wrap(make(name))(**batch, mask=mask))
    assert torch.equal(state_of(dynamic(**batch, mask=mask)), skipping)
    shake(dynamic.skip)
    assert torch.equal(state_of(dynamic(**batch)), plain)
    assert torch.equal(state_of(dynamic(**batch, mask=mask | True)), plain)
    assert not torch.allclose(state_of(dynamic(**batch, mask=mask)), skipping, atol=1e-2)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "whisper-generation"])
@torch.no_grad()
def test_with_adapters_a_mixed_batch_equals_one_at_a_time_without_padding(name):
    dynamic = adapted(name)
    lengths = lengths_of(name) if name in PADDED else None
    batch = inputs(dynamic.model, lengths=lengths)
    rows, _ = count_runs(dynamic)
    together = state_of(dynamic(**batch, mask=MIXED))
    assert rows == MIXED.sum(0).tolist()
    main = dynamic.main_input_name
    for i in range(3):
        alone = {key: value[i : i + 1] for key, value in batch.items()}
        if lengths:
            del alone["attention_mask"]
            alone[main] = alone[main].narrow(dynamic.backbone.time, 0, lengths[i])
        single = state_of(dynamic(**alone, mask=MIXED[i]))
        mine = together[i : i + 1, : single.shape[1]]
        torch.testing.assert_close(mine, single, rtol=2e-4, atol=2e-4)


def test_adapters_are_small_counted_and_trained():
    dynamic = adapted("ast")
    skip = dynamic.skip
    assert isinstance(skip, SkipPath)
    assert skip.macs(10) == 2 * 10 * RANK * 32
    assert sounding.wrap(make("ast")).skip.macs(10) == 0
    hidden = torch.randn(2, 5, 32)
    expected = hidden * (1 + skip.scale[2]) + skip.shift[2] + hidden @ skip.down[2].T @ skip.up[2].T
    torch.testing.assert_close(skip(2, dynamic.stack.layers[2], hidden), expected)
    dynamic(**inputs(dynamic.model), mask=MIXED[:1].expand(3, -1)).logits.sum().backward()
    for parameter in skip.parameters():  # only that of layer 1 was used
        assert parameter.grad.flatten(1).any(1).tolist() == [False, True, False, False]


@torch.no_grad()
def test_adapters_work_in_a_model_of_lower_precision_and_under_autocast():
    dynamic = sounding.wrap(make("ast").bfloat16(), skip="adapter")
    shake(dynamic.skip)
    batch = {k: v.bfloat16() for k, v in inputs(dynamic.model).items()}
    assert dynamic(**batch, mask=MIXED).logits.dtype == torch.bfloat16
    dynamic = adapted("ast")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(dynamic(**inputs(dynamic.model), mask=MIXED).logits).all()


# --- a selector that reads after layer 0 ----------------------------------------------------


def late(name="whisper-classification", after=1):
    dynamic = sounding.wrap(make(name), InputSelector(32, 4, after=after)).eval()
    torch.manual_seed(5)
    nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    nn.init.normal_(dynamic.policy.project.weight, std=0.5)
    return dynamic


@torch.no_grad()
def test_a_selector_after_layer_0_reads_its_state_and_layer_0_runs_once_for_all():
    dynamic = late()
    batch = inputs(dynamic.model, batch=6, lengths=[61, 98, 37, 50, 90, 70])
    batch = unlike(dynamic, batch)
    features = dynamic.forward_masks(batch, MIXED)
    pooled = pool(features.features, features.frame_mask)
    dynamic.policy.center, dynamic.policy.spread = pooled.mean(0), pooled.std(0)
    rows, runs = count_runs(dynamic)
    k = torch.tensor([1, 2, 3, 4, 2, 3])
    out = dynamic(**batch, budget=k)
    assert rows[0] == 6
    assert runs[0] == 1
    assert rows == out.executed_layers.sum(0).tolist()
    assert out.executed_layers.sum(1).tolist() == k.tolist()
    scores = dynamic.policy.scores(features.features, features.frame_mask, k)
    assert scores[:, 0].isinf().all()
    order = scores.argsort(1, descending=True)
    for i in range(6):
        assert set(out.executed_layers[i].nonzero().flatten().tolist()) == set(
            order[i, : k[i]].tolist()
        )
    two = dynamic(**batch, budget=2).executed_layers
    assert len({tuple(mask) for mask in two.tolist()}) > 1
    for i in range(6):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        assert torch.equal(dynamic(**one, budget=k[i]).executed_layers[0], out.executed_layers[i])


@pytest.mark.parametrize("training", [False, True])
def test_one_layer_after_layer_0_is_layer_0_alone(training):
    dynamic = late().train(training)
    rows, _ = count_runs(dynamic)
    for budget, total in ((1, 3), (2, 6), (3, 9)):
        rows[:] = [0] * 4
        out = dynamic(**inputs(dynamic.model), budget=budget)
        assert rows[0] == 3
        assert sum(rows) == total
        assert out.executed_layers[:, 0].all()
    out.logits.sum().backward()
    gradient = dynamic.policy.score.weight.grad
    assert gradient is None or (gradient[0] == 0).all()
    assert (gradient is not None) is training


@pytest.mark.parametrize("training", [False, True])
def test_fewer_layers_than_the_selector_waits_for_are_the_first_ones(training):
    dynamic = late(after=3).train(training)
    rows, _ = count_runs(dynamic)
    out = dynamic(**inputs(dynamic.model), budget=[1, 2, 4])
    assert out.executed_layers.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert rows == [3, 2, 1, 1]


def test_a_selector_after_all_layers_is_refused():
    for after in (-1, 4):
        with pytest.raises(ValueError, match="after is from 0 to 3"):
            InputSelector(32, 4, after=after)


def test_a_plan_chooses_once_after_its_layers():
    seen = []

    def choose(state, frame_mask, k):
        seen.append(state)
        assert k.tolist() == [3, 2, 3]
        return Gates(MIXED)

    k = torch.tensor([3, 2, 3])
    plan, states = UpFront(choose, k, after=2), [torch.randn(3, 5, 8) for _ in range(4)]
    kept = [plan(i, state, None)[0] for i, state in enumerate(states)]
    assert len(seen) == 1
    assert seen[0] is states[2]
    assert torch.stack(kept, 1).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 1]]


def test_learned_scores_that_ignore_the_input_are_trained_and_the_first_k_are_not():
    scores = torch.tensor([0.1, 2.0, -1.0, 1.0])
    learned = StaticScores(scores, learn=True)
    assert [p.requires_grad for p in learned.parameters()] == [True]
    assert not any(p.requires_grad for p in StaticScores.first(4).parameters())
    features, k = torch.randn(3, 7, 32), torch.tensor([1, 2, 3])
    assert learned(features, None, k).mask.int().tolist() == [
        [0, 1, 0, 0],
        [0, 1, 0, 1],
        [1, 1, 0, 1],
    ]
    learned.scores(features, None, k).sum().backward()
    assert learned.layer_scores.grad.tolist() == [3.0] * 4
