"""Every supported family: untouched at full depth, right at every mask, right in every batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import CUT, MODELS, inputs, make
from torch import nn

import sounding
from sounding.budget import Budget
from sounding.model.backbones import find_backbone

ALL_MASKS = [mask for mask in itertools.product((False, True), repeat=4) if any(mask)]
every_model = pytest.mark.parametrize("name", MODELS)


def tensors(out):
    """The tensors of an output by name, the bookkeeping left out."""
    found = {}
    for key, value in out.items():
        if key != "executed_layers" and isinstance(value, torch.Tensor):
            found[key] = value
        elif "hidden_states" in key and value is not None:
            found |= {f"{key}.{i}": state for i, state in enumerate(value)}
    return found


def assert_close(a, b, tolerance=2e-5):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=key)


def layers_of(model):
    backbone, base = find_backbone(model)
    return backbone.owner(base).layers


def count_runs(layers):
    """Hooks that count, per layer, the inputs that a layer really saw."""
    counts = [0] * len(layers)

    def hook(index):
        def count(module, args, output):
            counts[index] += args[0].shape[0]

        return count

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    return counts, handles


@every_model
@torch.no_grad()
def test_full_depth_is_bit_identical_and_unwrap_gives_the_model_back(name):
    model = make(name)
    batch = inputs(model)
    keys = set(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    before = tensors(model(**batch, output_hidden_states=True))
    plain_layers = layers_of(model)

    dynamic = sounding.wrap(model)
    assert [id(p) for p in model.parameters()] == parameters
    for budget in (None, 4, "4", "100%", Budget.share(1), [4, 4, 4]):
        out = dynamic(**batch, budget=budget, output_hidden_states=True)
        after = tensors(out)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert out.executed_layers.all()
    dynamic(**batch, budget=2)

    assert sounding.unwrap(dynamic) is model
    assert set(model.state_dict()) == keys
    assert layers_of(model) is plain_layers
    assert type(plain_layers) is nn.ModuleList
    assert "forward" not in vars(find_backbone(model)[1])
    again = tensors(model(**batch, output_hidden_states=True))
    assert all(torch.equal(before[key], again[key]) for key in before)


@every_model
@torch.no_grad()
def test_each_mask_equals_a_model_cut_to_that_mask(name):
    model = make(name)
    batch = inputs(model)
    dynamic = sounding.wrap(model)
    for mask in ALL_MASKS:
        out = dynamic(**batch, mask=torch.tensor(mask))
        assert out.executed_layers.tolist() == [list(mask)] * 3
        assert_close(tensors(cut_to(name, model, mask)(**batch)), tensors(out))


def cut_to(name, model, mask):
    """A plain model, built anew, with only the layers of `mask`."""
    key = next((value for part, value in CUT.items() if part in name), "num_hidden_layers")
    if name == "parakeet-ctc":
        values = MODELS[name][2]["encoder_config"] | {key: sum(mask)}
        cut = make(name, encoder_config=values)
    else:
        cut = make(name, **{key: sum(mask)})
    layers = layers_of(model)
    prefix = next(n for n, module in model.named_modules() if module is layers) + "."
    kept = [i for i, keep in enumerate(mask) if keep]
    new = {}
    for k, v in model.state_dict().items():
        index, _, rest = k.removeprefix(prefix).partition(".")
        if not k.startswith(prefix) or "rel_attn_embed" in k:  # WavLM: layer 0 has the bias of all
            new[k] = v
        elif int(index) in kept:
            new[f"{prefix}{kept.index(int(index))}.{rest}"] = v
    cut.load_state_dict(new)
    return cut


def mixed_lengths(name):
    if "whisper" in name:
        return [61, 98, 37]  # odd on purpose: a stride of 2 must not read across the end
    if "ast" in name:
        return None
    if "2-bert" in name:
        return [9, 24, 17]
    if "parakeet" in name:
        return [41, 96, 73]
    return [2100, 4000, 3333]


@pytest.mark.parametrize("name", [n for n in MODELS if n != "whisper-generation"])
@torch.no_grad()
def test_mixed_batch_equals_one_at_a_time_and_runs_only_what_was_chosen(name):
    model = make(name)
    lengths = mixed_lengths(name)
    batch = inputs(model, lengths=lengths)
    dynamic = sounding.wrap(model)
    mask = torch.tensor(
        [[True, False, True, True], [False, True, False, False], [True, True, False, True]]
    )
    counts, _ = count_runs(dynamic.stack.layers)
    together = dynamic(**batch, mask=mask)
    assert counts == mask.sum(0).tolist()
    assert torch.equal(together.executed_layers, mask)
    main = model.main_input_name
    for i in range(3):
        alone = {key: value[i : i + 1] for key, value in batch.items()}
        frames = lengths[i] if lengths else None
        if frames:
            alone.pop("attention_mask")
            time = -1 if "whisper" in name else 1
            alone[main] = alone[main].narrow(time, 0, frames)
        single = tensors(dynamic(**alone, mask=mask[i]))
        for key, value in tensors(together).items():
            if key not in single or key == "attention_mask":
                continue
            mine = value[i : i + 1]
            if mine.ndim == 3:  # frames, those of the padding cut off
                mine = mine[:, : single[key].shape[1]]
            torch.testing.assert_close(mine, single[key], rtol=2e-4, atol=2e-4, msg=f"{key} {i}")


@torch.no_grad()
def test_whisper_with_a_decoder_refuses_padding_that_it_cannot_leave_out():
    dynamic = sounding.wrap(make("whisper-generation"))
    batch = inputs(dynamic.model, lengths=[61, 98, 37])
    with pytest.raises(ValueError, match="one length"):
        dynamic(**batch)
    batch.pop("decoder_input_ids")
    with pytest.raises(ValueError, match="one length"):
        dynamic.generate(**batch, budget=2)


@every_model
@torch.no_grad()
def test_selected_input_is_the_same_alone_and_in_any_batch(name):
    model = make(name)
    torch.manual_seed(5)
    dynamic = sounding.wrap(model).eval()
    nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    batch = inputs(model, batch=6)
    together = dynamic(**batch, budget=[1, 2, 3, 4, 2, 1])
    order = [4, 2, 0, 5, 1, 3]
    shuffled = dynamic(
        **{key: value[order] for key, value in batch.items()}, budget=[2, 3, 1, 1, 2, 4]
    )
    assert together.executed_layers.sum(-1).tolist() == [1, 2, 3, 4, 2, 1]
    assert torch.equal(together.executed_layers[order], shuffled.executed_layers)
    for i in range(6):
        alone = dynamic(
            **{key: value[i : i + 1] for key, value in batch.items()}, budget=[1, 2, 3, 4, 2, 1][i]
        )
        assert torch.equal(alone.executed_layers[0], together.executed_layers[i])
        for key, value in tensors(alone).items():
            mine = tensors(together)[key][i : i + 1]
            torch.testing.assert_close(mine, value, rtol=2e-4, atol=2e-4, msg=key)


@every_model
@torch.no_grad()
def test_hidden_states_keep_their_length_at_every_budget(name):
    model = make(name)
    batch = inputs(model)
    dynamic = sounding.wrap(model)
    out = dynamic(**batch, mask=torch.tensor([False, True, False, True]), output_hidden_states=True)
    states = out.get("hidden_states", out.get("encoder_hidden_states"))
    assert len(states) == 5
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])
    assert not torch.equal(states[1], states[2])


@every_model
@pytest.mark.parametrize("budget", [1, 2, 4])
def test_training_reaches_the_selector_and_only_the_layers_that_ran(name, budget):
    model = make(name).train()
    dynamic = sounding.wrap(model).train()
    out = dynamic(**inputs(model), budget=budget)
    state = out[0] if torch.is_tensor(out[0]) else out.last_hidden_state
    state.float().square().mean().backward()
    ran = out.executed_layers.any(0).tolist()
    for layer, has_run in zip(dynamic.stack.layers, ran, strict=True):
        assert any(p.grad is not None for p in layer.parameters()) is has_run
    gradient = dynamic.policy.score.weight.grad
    assert gradient is None if budget == 4 else gradient.abs().sum() > 0


POST_NORM = ("post", "data2vec", "2-bert", "parakeet", "base-model")
ENDS_IN_NORM = sorted(n for n in MODELS if any(part in n for part in POST_NORM))


@pytest.mark.parametrize("name", ENDS_IN_NORM)
@torch.no_grad()
def test_skip_norm_applies_the_final_norm_of_the_skipped_layer(name):
    model = make(name)
    dynamic = sounding.wrap(model, skip="norm")
    out = dynamic(
        **inputs(model), mask=torch.tensor([True, False, False, False]), output_hidden_states=True
    )
    norm = dynamic.backbone.final_norm(dynamic.stack.layers[1])
    assert torch.equal(out.hidden_states[2], norm(out.hidden_states[1]))


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(ENDS_IN_NORM)))
def test_skip_norm_is_refused_where_layers_end_without_one(name):
    with pytest.raises(ValueError, match="do not"):
        sounding.wrap(make(name), skip="norm")


def test_unsupported_model_gets_the_list_of_supported_ones():
    with pytest.raises(ValueError, match=r"Whisper encoder.*AST.*docs/backbones\.md"):
        sounding.wrap(nn.Linear(2, 2))


def test_backbone_of_a_user_is_registered_and_found():
    from sounding.registry import BACKBONES

    class Mine(nn.Module):
        pass

    class MyBackbone(sounding.Backbone):
        name, base = "Mine", "Mine"

    before = dict(BACKBONES._values)
    try:
        sounding.register_backbone(MyBackbone())
        assert find_backbone(Mine())[0].name == "Mine"
    finally:
        BACKBONES._values = before
