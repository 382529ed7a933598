"""The executor: what it runs, what it leaves alone, and under which tools of torch it works."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from tiny import inputs, make

import sounding
from sounding.model.call import activate
from sounding.model.executor import run_layers
from sounding.policies import Policy
from sounding.policies.plans import Gates

MIXED = torch.tensor(
    [[True, False, True, True], [False, True, False, False], [True, True, False, True]]
)
LENGTHS = {
    "wav2vec2-post": [2100, 4000, 3333],
    "hubert-pre": [2100, 4000, 3333],
    "wavlm-post": [2100, 4000, 3333],
    "data2vec-audio": [2100, 4000, 3333],
    "wav2vec2-bert-relative": [9, 24, 17],
    "whisper-classification": [61, 98, 37],
    "moonshine-generation": [2100, 4000, 3333],
    "ast": None,
    "parakeet-ctc": [41, 96, 73],
}
each_family = pytest.mark.parametrize("name", LENGTHS)


def choosy(name, **options):
    """A wrapped model whose policy really depends on its input."""
    dynamic = sounding.wrap(make(name), **options).eval()
    torch.manual_seed(5)
    torch.nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    return dynamic


def state_of(out):
    return next(v for k, v in out.items() if k in ("logits", "last_hidden_state"))


# --- masks ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_mask_of_one_row_counts_for_the_batch_and_full_masks_give_the_plain_answer():
    dynamic = choosy("ast")
    batch = inputs(dynamic.model)
    rows = dynamic(**batch, mask=MIXED[:1].expand(3, -1)).logits
    assert torch.equal(rows, dynamic(**batch, mask=MIXED[0]).logits)
    assert torch.equal(rows, dynamic(**batch, mask=MIXED[0].tolist()).logits)
    full = dynamic(**batch, mask=torch.ones(3, 4, dtype=torch.bool)).logits
    assert torch.equal(full, dynamic.model(**batch).logits)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(3, 4),
        torch.ones(4, dtype=torch.long),
        [1, 0, 1, 0],
        torch.ones(5, dtype=torch.bool),
        torch.ones(1, 4, dtype=torch.bool),
        torch.ones(4, 3, dtype=torch.bool),
        torch.ones(1, 3, 4, dtype=torch.bool),
        torch.tensor(True),
        torch.ones(0, dtype=torch.bool),
        [],
        "abc",
        [[True], [True, False]],
        object(),
    ],
    ids=lambda mask: f"{type(mask).__name__}-{list(getattr(mask, 'shape', []))}",
)
def test_a_mask_of_a_wrong_shape_or_kind_is_refused(mask):
    dynamic = choosy("ast")
    with pytest.raises(ValueError, match="mask is"):
        dynamic(**inputs(dynamic.model), mask=mask)


def test_a_mask_that_keeps_nothing_of_an_input_is_refused():
    dynamic = choosy("ast")
    mask = MIXED.clone()
    mask[1] = False
    for wrong in (mask, torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="at least one layer"):
            dynamic(**inputs(dynamic.model), mask=wrong)


def test_a_mask_and_a_budget_together_are_refused():
    dynamic = choosy("ast")
    with pytest.raises(ValueError, match="not both"):
        dynamic(**inputs(dynamic.model), mask=MIXED, budget=2)


# --- what runs, and what is left alone ------------------------------------------------------


@each_family
@torch.no_grad()
def test_each_layer_sees_exactly_the_inputs_that_chose_it_in_their_order(name):
    dynamic = choosy(name)
    seen: list[torch.Tensor] = []
    for layer in dynamic.stack.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    dynamic(**inputs(dynamic.model), mask=MIXED)
    assert [len(part) for part in seen] == MIXED.sum(0).tolist()
    # Input 1 skips layer 0, so that layer 1 sees what entered layer 0; input 2 ran both.
    first = choosy(name)
    before: list[torch.Tensor] = []
    first.stack.layers[0].register_forward_pre_hook(lambda m, args: before.append(args[0].clone()))
    first(**inputs(first.model), budget=None)
    torch.testing.assert_close(seen[0], before[0][[0, 2]])
    torch.testing.assert_close(seen[1][0], before[0][1])


@each_family
@torch.no_grad()
def test_tensors_that_a_hook_has_kept_are_not_overwritten(name):
    """The executor writes into a buffer of its own, never into others'."""
    dynamic = choosy(name)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module, args, out):
        values = (*args, *(out if isinstance(out, tuple) else (out,)))
        kept.extend((value, value.clone()) for value in values if torch.is_tensor(value))

    for module in dynamic.model.modules():
        module.register_forward_hook(keep)
    batch = inputs(dynamic.model)
    given = {key: value.clone() for key, value in batch.items()}
    mask = torch.tensor([[True, True, True, False], [True, False, True, True], [True] * 4])
    for one in (mask, MIXED, mask[:, [1, 3, 0, 2]]):
        dynamic(**batch, mask=one)
    assert len(kept) > 20
    assert all(torch.equal(now, then) for now, then in kept)
    assert all(torch.equal(batch[key], given[key]) for key in batch)


@each_family
def test_with_and_without_gradients_the_answer_is_the_same(name):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=LENGTHS[name])
    with_gradients = dynamic(**batch, mask=MIXED)
    with torch.no_grad():
        without = dynamic(**batch, mask=MIXED)
        states = dynamic(**batch, mask=MIXED, output_hidden_states=True)
    with torch.inference_mode():
        inference = dynamic(**batch, mask=MIXED)
    for out in (states, inference):
        assert torch.equal(state_of(out), state_of(without))
        assert torch.equal(out.executed_layers, MIXED)
    # Attention may take another kernel where a gradient is wanted.
    torch.testing.assert_close(state_of(with_gradients), state_of(without), rtol=1e-4, atol=1e-4)


def test_executed_layers_is_bool_batch_by_layers_and_a_copy():
    dynamic = choosy("ast")
    mask = MIXED.clone()
    out = dynamic(**inputs(dynamic.model), mask=mask)
    out.executed_layers[:] = False
    assert torch.equal(mask, MIXED)


@torch.no_grad()
def test_padding_is_refused_where_an_encoder_runs_on_a_part_of_the_batch():
    """As Whisper's fallback of temperatures does: which part is not to be known."""
    dynamic = choosy("whisper-classification")
    batch = inputs(dynamic.model, lengths=[61, 98, 37])
    call, _ = dynamic.begin(batch["input_features"], 2, None, batch)
    with activate(call), pytest.raises(ValueError, match="one input at a time"):
        run_layers(call, torch.randn(1, 49, 32), None)


@torch.no_grad()
def test_after_an_error_inside_a_layer_the_model_is_plain_again():
    dynamic = choosy("wav2vec2-post")
    batch = inputs(dynamic.model)
    plain = dynamic.model(**batch).logits
    bomb = dynamic.stack.layers[2].register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dynamic(**batch, mask=MIXED)
    bomb.remove()
    assert torch.equal(dynamic.model(**batch).logits, plain)
    assert torch.equal(dynamic(**batch).logits, plain)


@torch.no_grad()
def test_a_dynamic_model_called_inside_another_keeps_to_its_own_layers():
    outer, inner = choosy("ast"), choosy("wav2vec2-post")
    results = []

    def call_inner(module, args, out):
        results.append(inner(**inputs(inner.model), mask=MIXED[:, [1, 0, 3, 2]]).executed_layers)
        results.append(inner.model(**inputs(inner.model)).logits)

    outer.stack.layers[1].register_forward_hook(call_inner)
    out = outer(**inputs(outer.model), mask=MIXED)
    assert torch.equal(out.executed_layers, MIXED)
    assert torch.equal(results[0], MIXED[:, [1, 0, 3, 2]])
    assert torch.equal(results[1], inner.model(**inputs(inner.model)).logits)


@torch.no_grad()
def test_threads_that_call_at_once_get_their_own_layers_and_answers():
    dynamic = choosy("wav2vec2-post")
    batch = inputs(dynamic.model, lengths=LENGTHS["wav2vec2-post"])
    masks = [MIXED, ~MIXED, MIXED[:, [2, 3, 0, 1]], torch.ones(3, 4, dtype=torch.bool)]
    expected = [dynamic(**batch, mask=mask).logits for mask in masks]
    barrier, wrong = threading.Barrier(len(masks)), []

    def work(i):
        torch.set_grad_enabled(False)
        barrier.wait()
        for _ in range(15):
            out = dynamic(**batch, mask=masks[i])
            if not torch.equal(out.executed_layers, masks[i]):
                wrong.append((i, "layers"))
            if not torch.equal(out.logits, expected[i]):
                wrong.append((i, "logits"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(masks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- gradients ------------------------------------------------------------------------------


class Fixed(Policy):
    """A policy with a fixed mask whose gates can be differentiated."""

    kind = "fixed"

    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.gates = torch.nn.Parameter(mask.float())

    def forward(self, features, frame_mask, k):
        return Gates(self.mask, self.gates)


def test_the_gradient_of_a_gate_is_the_effect_of_running_the_layer():
    """For a linear head over one layer: d loss / d gate = loss(run) - loss(skipped)."""
    model = make("wav2vec2-base-model", num_hidden_layers=2)
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    dynamic = sounding.wrap(model, Fixed(mask))
    batch = inputs(model)
    direction = torch.randn(32)

    def loss(mask=None):
        out = dynamic(**batch, **({"budget": 1} if mask is None else {"mask": mask}))
        return (out.last_hidden_state @ direction).mean(1)  # [batch]

    loss().sum().backward()
    gradient = dynamic.policy.gates.grad
    with torch.no_grad():
        last = loss(mask) - loss(mask & torch.tensor([True, False]) | torch.tensor([[True, False]]))
    # Only the gate of the last layer acts linearly on the loss; input 2 runs layer 0 in both.
    torch.testing.assert_close(gradient[2, 1], last[2], rtol=1e-4, atol=1e-4)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


@each_family
def test_gradients_are_the_same_where_all_hidden_states_are_kept(name):
    """Those that are kept are never written into; else one buffer serves all layers."""
    gradients = []
    for keep in (False, True):
        dynamic = choosy(name)
        batch = inputs(dynamic.model, lengths=LENGTHS[name])
        mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]]).bool()
        out = dynamic(**batch, mask=mask, output_hidden_states=keep)
        state_of(out).square().mean().backward()
        gradients.append({n: p.grad for n, p in dynamic.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], msg=key)


def test_gates_do_not_change_the_answer():
    mask = torch.tensor([[True, False, True, True]] * 3)
    dynamic = sounding.wrap(make("ast"), Fixed(mask))
    batch = inputs(dynamic.model)
    assert torch.equal(dynamic(**batch, budget=3).logits, dynamic(**batch, mask=mask).logits)


@each_family
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    if reentrant and name == "wavlm-post":
        pytest.skip("refused, as the next test says")
    gradients = []
    for checkpointing in (False, True):
        dynamic = choosy(name).train()
        for module in dynamic.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable_checkpointing(dynamic, reentrant)
        batch = inputs(dynamic.model, lengths=LENGTHS[name])
        torch.manual_seed(0)
        out = dynamic(**batch, budget=[2, 1, 3])
        dynamic(**inputs(dynamic.model, seed=2), budget=1)  # another call before the backward pass
        state_of(out).float().square().mean().backward()
        gradients.append({n: p.grad for n, p in dynamic.named_parameters() if p.grad is not None})
    before, after = gradients
    assert before.keys() == after.keys()
    assert any(name.startswith("policy.") for name in after)
    for key in before:
        torch.testing.assert_close(before[key], after[key], rtol=1e-4, atol=1e-6, msg=key)


def enable_checkpointing(dynamic, reentrant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it has another name from transformers 6 on
        dynamic.gradient_checkpointing_enable({"use_reentrant": reentrant})


def test_reentrant_checkpointing_is_refused_where_it_would_never_end():
    """Plain WavLM hangs in the backward pass."""
    dynamic = choosy("wavlm-post").train()
    enable_checkpointing(dynamic, reentrant=True)
    with pytest.raises(ValueError, match='"use_reentrant": False'):
        dynamic(**inputs(dynamic.model), budget=2)
    with torch.no_grad():
        dynamic(**inputs(dynamic.model), budget=2)


# --- autocast, dtypes, compile --------------------------------------------------------------


@each_family
@torch.no_grad()
def test_under_autocast_the_choice_is_the_same_alone_and_in_a_batch(name):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, batch=6)
    budgets = [1, 2, 3, 4, 2, 1]
    with torch.autocast("cpu", torch.bfloat16):
        together = dynamic(**batch, budget=budgets)
        assert together.executed_layers.sum(-1).tolist() == budgets
        for i, budget in enumerate(budgets):
            alone = dynamic(**{k: v[i : i + 1] for k, v in batch.items()}, budget=budget)
            assert torch.equal(alone.executed_layers[0], together.executed_layers[i])
            assert state_of(alone).dtype == state_of(together).dtype


def test_under_autocast_training_reaches_the_selector():
    dynamic = choosy("wav2vec2-post").train()
    batch = inputs(dynamic.model, lengths=LENGTHS["wav2vec2-post"])
    with torch.autocast("cpu", torch.bfloat16):
        loss = dynamic(**batch, budget=2).logits.float().square().mean()
    loss.backward()
    assert dynamic.policy.score.weight.grad.abs().sum() > 0
    assert dynamic.policy.center.dtype == torch.float32


@each_family
@torch.no_grad()
def test_a_dynamic_model_cast_as_a_whole_still_runs(name):
    dynamic = choosy(name).to(torch.bfloat16)
    batch = inputs(dynamic.model)
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    out = dynamic(**batch, budget=[1, 2, 4])
    assert out.executed_layers.sum(-1).tolist() == [1, 2, 4]
    assert state_of(out).dtype == torch.bfloat16


def compile_in_place(stack):
    for layer in stack.layers:
        layer.compile(backend="eager")


def compile_anew(stack):
    for i, layer in enumerate(stack.layers):
        stack[i] = torch.compile(layer, backend="eager")


@pytest.mark.parametrize("compiling", [compile_in_place, compile_anew])
@pytest.mark.parametrize("name", ["whisper-classification", "wav2vec2-post"])
@torch.no_grad()
def test_compiled_layers_give_the_same_answer(name, compiling):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=LENGTHS[name])
    masks = [torch.ones(3, 4, dtype=torch.bool), MIXED, MIXED[:, [1, 0, 3, 2]]]
    expected = [dynamic(**batch, mask=mask).logits for mask in masks]
    compiling(dynamic.stack)
    for mask, logits in zip(masks, expected, strict=True):
        out = dynamic(**batch, mask=mask)
        assert torch.equal(out.executed_layers, mask)
        torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
