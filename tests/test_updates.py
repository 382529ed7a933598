"""Changes of the weights that act below full depth only."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

import sounding
from sounding.errors import UsageError
from sounding.model.decoder import running
from sounding.model.updates import LowRank, ModuleUpdate, add_updates
from sounding.policies import StaticScores

CTC = ["whisper-ctc", "wav2vec2-pre", "wavlm-pre", "moonshine-ctc", "wav2vec2-bert-relative"]
CTC += ["parakeet-ctc", "ast", "hubert-post"]
each_model = pytest.mark.parametrize("name", CTC)

pytestmark = pytest.mark.usefixtures("quiet_generate")


def changed(model, *, rank=4, decoder=0, own_length=False, seed=3):
    """A dynamic model whose updates are no longer zero."""
    dynamic = sounding.wrap(model, "first")
    dynamic.trained = dynamic.decoder_trained = True
    add_updates(dynamic, {"encoder": rank, "decoder": decoder}, own_length=own_length)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in dynamic.updates.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    dynamic.updates.requires_grad_(False)
    return dynamic.eval()


@each_model
def test_full_depth_is_that_of_the_plain_model_bit_for_bit(name):
    plain, model = tiny.make(name), tiny.make(name)
    batch = tiny.inputs(plain)
    with torch.no_grad():
        wanted = plain(**batch).logits
        dynamic = changed(model)
        layers = dynamic.num_layers
        for choice in ({}, {"budget": layers}, {"mask": torch.ones(layers, dtype=torch.bool)}):
            assert torch.equal(dynamic(**batch, **choice).logits, wanted)
        assert not torch.allclose(
            dynamic(**batch, budget=layers - 1).logits,
            sounding.wrap(plain, "first")(**batch, budget=layers - 1).logits,
        )


@each_model
def test_a_batch_of_mixed_depths_answers_each_input_as_alone(name):
    dynamic = changed(tiny.make(name))
    layers = dynamic.num_layers
    batch = tiny.inputs(dynamic.model)
    budgets = [1, layers, layers - 1]
    with torch.no_grad():
        together = dynamic(**batch, budget=budgets)
        for row, k in enumerate(budgets):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            alone = dynamic(**one, budget=k).logits[0]
            torch.testing.assert_close(together.logits[row], alone, rtol=1e-4, atol=1e-4)
    assert together.executed_layers.sum(1).tolist() == budgets


def test_weights_folded_by_hand_answer_the_same_as_updates():
    dynamic = changed(tiny.make("whisper-ctc"))
    folded = sounding.wrap(tiny.make("whisper-ctc"), "first")
    folded.trained = True
    updates = dynamic.updates
    owners = [*zip(updates.layers["encoder"], folded.stack.layers, strict=True)]
    owners.append((updates.norms["encoder"], folded.backbone.output_norm(folded.base)))
    with torch.no_grad():
        for update, module in owners:
            for key, own in update.names.items():
                module.get_parameter(own).add_(update.changes[key]())
        batch = tiny.inputs(dynamic.model)
        for k in range(1, dynamic.num_layers):
            torch.testing.assert_close(
                dynamic(**batch, budget=k).logits, folded(**batch, budget=k).logits
            )


def test_only_kept_layers_run_and_hooks_see_them():
    dynamic = changed(tiny.make("whisper-ctc"))
    ran = []
    for index, layer in enumerate(dynamic.stack.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    batch = tiny.inputs(dynamic.model)
    for _ in range(2):  # the twin that is kept, too
        ran.clear()
        with torch.no_grad():
            dynamic(**batch, budget=2)
        assert ran == [0, 1]


def test_several_masks_at_once_answer_as_one_by_one():
    dynamic = changed(tiny.make("whisper-ctc"))
    layers = dynamic.num_layers
    masks = torch.tensor([[True] * layers, [True] + [False] * (layers - 1)])
    masks = torch.cat([masks, torch.tensor([[True] * (layers - 1) + [False]])])
    batch = tiny.inputs(dynamic.model)
    with torch.no_grad():
        made = dynamic.forward_masks(batch, masks).logits
        for mask, logits in zip(masks, made, strict=True):
            torch.testing.assert_close(logits, dynamic(**batch, mask=mask).logits)


@pytest.mark.parametrize("own_length", [False, True])
def test_own_length_is_changed_at_full_depth_only_if_asked_for(own_length):
    dynamic = changed(tiny.make("whisper-ctc"), own_length=own_length)
    plain = sounding.wrap(tiny.make("whisper-ctc"), "first")
    window = dynamic.backbone.window(dynamic.base)
    batch = tiny.inputs(dynamic.model)
    short = {"input_features": batch["input_features"][..., : window // 2]}
    whole = {"input_features": torch.randn(2, 16, window)}
    with torch.no_grad():
        same = torch.equal(dynamic(**short).logits, plain(**short).logits)
        assert same is not own_length
        assert torch.equal(dynamic(**whole).logits, plain(**whole).logits)


@pytest.mark.parametrize("name", ["whisper-generation", "moonshine-generation"])
def test_a_decoder_is_changed_only_where_it_leaves_layers_out(name):
    dynamic, plain = changed(tiny.make(name), decoder=3), sounding.wrap(tiny.make(name), "first")
    plain.decoder_trained = plain.trained = True
    assert dynamic.updates.norms["decoder"].changes
    layers = len(dynamic.decoder_stack)
    batch = tiny.inputs(dynamic.model)
    full, less = torch.ones(layers).bool(), torch.arange(layers) < layers - 1

    def logits(model, mask):
        with (
            torch.no_grad(),
            running(model.decoder_stack, mask, model.updates, model.decoder_norm) as ran,
        ):
            out = model.model(**batch).logits
        assert ran.tolist() == mask.tolist()
        return out

    assert torch.equal(logits(dynamic, full), logits(plain, full))
    assert not torch.allclose(logits(dynamic, less), logits(plain, less))
    given = {key: value for key, value in batch.items() if key != "decoder_input_ids"}
    options = {"max_new_tokens": 5, "do_sample": False}
    whole = dynamic.generate(**given, **options)
    assert torch.equal(whole, plain.generate(**given, **options))
    mixed = dynamic.generate(**given, decoder_budget=[layers, 1, layers], **options)
    assert torch.equal(mixed[0, : whole.shape[1]], whole[0])


def test_changed_decoder_layers_are_found_once_a_text_and_not_for_each_token(monkeypatch):
    dynamic = changed(tiny.make("whisper-generation"), decoder=3)
    found, twin = [], ModuleUpdate.twin
    monkeypatch.setattr(
        ModuleUpdate, "twin", lambda self, module: found.append(self) or twin(self, module)
    )
    features = tiny.inputs(dynamic.model)["input_features"][:1]
    decoder = [*dynamic.updates.layers["decoder"], dynamic.updates.norms["decoder"]]
    for _ in range(2):  # and anew for the next one, whose weights may be others
        found.clear()
        dynamic.generate(features, decoder_budget=1, max_new_tokens=6, min_new_tokens=6)
        assert sorted(sum(one is each for one in found) for each in decoder) == [0, 1, 1]


def test_changed_layers_draft_what_the_plain_decoder_says():
    dynamic = changed(tiny.make("whisper-generation"), decoder=3)
    plain = sounding.wrap(tiny.make("whisper-generation"), "first")
    given = tiny.inputs(dynamic.model, batch=1)
    del given["decoder_input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False}
    layers = len(dynamic.decoder_stack)
    dynamic.decoder_policy = StaticScores(torch.arange(layers).float())
    ran = []
    for index, layer in enumerate(dynamic.decoder_stack.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    wanted = plain.generate(**given, **options)
    assert torch.equal(dynamic.generate(**given, **options, draft=1), wanted)
    assert ran.count(layers - 1) > ran.count(0)  # the last one drafts, by its policy


def test_layers_of_a_static_decoder_policy_are_known_before_and_run_in_one_group():
    dynamic = changed(tiny.make("whisper-generation"), decoder=3)
    layers = len(dynamic.decoder_stack)
    dynamic.decoder_policy = StaticScores(torch.arange(layers).float())
    given = tiny.inputs(dynamic.model)
    del given["decoder_input_ids"]
    out = dynamic.generate(
        **given, decoder_budget=1, max_new_tokens=3, return_dict_in_generate=True
    )
    last = [[False] * (layers - 1) + [True]] * len(given["input_features"])
    assert out["executed_decoder_layers"].tolist() == last


def test_a_saved_model_answers_the_same_and_loads_as_a_plain_one(tmp_path):
    dynamic = changed(tiny.make("whisper-generation"), decoder=3, own_length=True)
    dynamic.save_pretrained(tmp_path)
    loaded = sounding.load(tmp_path)
    assert loaded.updates.config() == dynamic.updates.config()
    batch = tiny.inputs(dynamic.model)
    with torch.no_grad():
        for k in range(1, dynamic.num_layers + 1):
            one, other = dynamic(**batch, budget=k), loaded(**batch, budget=k)
            assert torch.equal(one.logits, other.logits)
        plain = type(dynamic.model).from_pretrained(tmp_path)
        again = tiny.make("whisper-generation")
        for key, value in plain.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key


def test_unwrap_gives_the_plain_model_back():
    model = tiny.make("whisper-generation")
    classes = {name: type(part) for name, part in model.named_modules()}
    dynamic = changed(model, decoder=3)
    batch = tiny.inputs(model)
    with torch.no_grad():
        dynamic(**batch, budget=1)
    back = sounding.unwrap(dynamic)
    assert {name: type(part) for name, part in back.named_modules()} == classes


def test_threads_at_other_depths_do_not_see_the_changes():
    dynamic = changed(tiny.make("whisper-ctc"))
    batch = tiny.inputs(dynamic.model)
    layers = dynamic.num_layers

    def answer(k):
        with torch.no_grad():
            return dynamic(**batch, budget=k).logits

    budgets = [1, layers, 2, layers] * 10
    wanted = {k: answer(k) for k in set(budgets)}
    with ThreadPoolExecutor(4) as pool:
        for k, logits in zip(budgets, pool.map(answer, budgets), strict=True):
            assert torch.equal(logits, wanted[k])


def test_copies_have_twins_of_their_own():
    dynamic = changed(tiny.make("whisper-ctc"))
    batch = tiny.inputs(dynamic.model)
    with torch.no_grad():
        before = dynamic(**batch, budget=1).logits
        for other in (copy.deepcopy(dynamic), pickle.loads(pickle.dumps(dynamic))):
            assert torch.equal(other(**batch, budget=1).logits, before)
            other.stack.layers[0].fc1.weight.zero_()
            assert not torch.allclose(other(**batch, budget=1).logits, before)
        assert torch.equal(dynamic(**batch, budget=1).logits, before)


def test_a_twin_follows_the_weights_it_was_made_of():
    dynamic = changed(tiny.make("whisper-ctc"))
    batch = tiny.inputs(dynamic.model)
    with torch.no_grad():
        before = dynamic(**batch, budget=1).logits
        next(dynamic.updates.parameters()).add_(1)
        after = dynamic(**batch, budget=1).logits
        assert not torch.allclose(after, before)
        dynamic.double()
        doubled = {key: value.double() for key, value in batch.items()}
        assert dynamic(**doubled, budget=1).logits.dtype == torch.float64


def test_gradients_reach_the_updates_below_full_depth_only():
    dynamic = changed(tiny.make("whisper-ctc"))
    dynamic.requires_grad_(False)
    dynamic.updates.requires_grad_(True)
    batch = tiny.inputs(dynamic.model)
    dynamic(**batch, budget=1).logits.sum().backward()
    first, second = dynamic.updates.layers["encoder"][:2]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())
    assert all(p.grad is None for p in second.parameters())
    assert not dynamic(**batch).logits.requires_grad


@each_model
def test_training_computes_what_the_changed_weights_give_and_their_gradients(name):
    dynamic = changed(tiny.make(name))
    dynamic.requires_grad_(False)
    batch = tiny.inputs(dynamic.model)
    wanted = dynamic(**batch, budget=1).logits  # by whole changed matrices
    dynamic.updates.requires_grad_(True)
    trained = dynamic(**batch, budget=1).logits
    torch.testing.assert_close(trained, wanted, rtol=1e-4, atol=1e-4)
    trained.square().sum().backward()
    changes = [one for one in dynamic.updates.modules() if isinstance(one, LowRank)]
    changes = [one for one in changes if one.up.grad is not None]
    change = max(changes, key=lambda one: float(one.up.grad.abs().max()))
    dynamic.updates.requires_grad_(False)
    step = torch.zeros_like(change.up)
    step.view(-1)[change.up.grad.abs().argmax()] = 1e-3
    sides = []
    for sign in (1, -1):
        change.up.add_(sign * step)
        sides.append(dynamic(**batch, budget=1).logits.double().square().sum())
        change.up.sub_(sign * step)
    slope = (sides[0] - sides[1]) / 2e-3
    torch.testing.assert_close(slope.float(), change.up.grad[step > 0][0], rtol=0.05, atol=1e-3)


def test_changes_that_are_reset_are_zero_and_can_be_trained():
    dynamic = changed(tiny.make("whisper-ctc"))
    dynamic.updates.reset()
    batch = tiny.inputs(dynamic.model)
    plain = sounding.wrap(tiny.make("whisper-ctc"), "first")
    with torch.no_grad():
        assert torch.equal(dynamic(**batch, budget=1).logits, plain(**batch, budget=1).logits)
    assert all(change.down.any() for change in dynamic.updates.modules() if hasattr(change, "down"))


def test_quantized_layers_say_that_they_cannot_be_changed():
    dynamic = changed(tiny.make("whisper-ctc"))
    dynamic.stack.layers[0].fc1 = torch.nn.Identity()
    with torch.no_grad(), pytest.raises(UsageError, match="quantize a model without updates"):
        dynamic(**tiny.inputs(dynamic.model), budget=1)


def test_wrong_ranks_and_second_updates_are_refused():
    dynamic = sounding.wrap(tiny.make("whisper-ctc"), "first")
    for ranks in ({"encoder": -1}, {"head": 2}, {"encoder": 1.5}):
        with pytest.raises(UsageError, match="ranks are whole numbers"):
            add_updates(dynamic, ranks)
    with pytest.raises(UsageError, match="no decoder that drops layers"):
        add_updates(dynamic, {"encoder": 2, "decoder": 2})
    add_updates(dynamic, {"encoder": 2})
    with pytest.raises(UsageError, match="has updates already"):
        add_updates(dynamic, {"encoder": 2})
