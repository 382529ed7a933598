"""`wrap`, `unwrap`, a call and `generate`: what is given back, what is kept, what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from forge import forge
from tiny import MODELS, inputs, make

import sounding
from sounding.files import sha256
from sounding.model.backbones import Backbone
from sounding.model.executor import LayerStack
from sounding.model.untrained import UntrainedWarning
from sounding.policies import InputSelector, StaticScores
from sounding.registry import BACKBONES


def choosy(name, **options):
    """A wrapped model whose policy really depends on its input."""
    dynamic = sounding.wrap(make(name), **options).eval()
    torch.manual_seed(5)
    torch.nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    return dynamic


# --- wrap and unwrap ------------------------------------------------------------------------


def test_wrapping_twice_is_refused_also_through_the_model_or_a_part_of_it():
    model = make("wav2vec2-post")
    dynamic = sounding.wrap(model)
    for again in (dynamic, model, model.wav2vec2):
        with pytest.raises(ValueError, match="wrapped already"):
            sounding.wrap(again)
    assert sounding.wrap(sounding.unwrap(dynamic)).num_layers == 4


def test_a_compiled_model_is_refused_with_the_way_to_compile_layers():
    with pytest.raises(ValueError, match=r"layer\.compile\(\)"):
        sounding.wrap(torch.compile(make("ast"), backend="eager"))


def test_an_unknown_policy_or_skip_is_refused():
    with pytest.raises(ValueError, match=r"unknown policy 'best'\. Known: input, .*first"):
        sounding.wrap(make("ast"), "best")
    with pytest.raises(ValueError, match=r"a name or a sounding\.Policy, not a Linear"):
        sounding.wrap(make("ast"), torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="identity, norm, adapter"):
        sounding.wrap(make("ast"), skip="zero")


@pytest.mark.parametrize(("policy", "skip"), [("best", "identity"), ("input", "norm")])
def test_a_refused_wrap_leaves_the_model_as_it_was(policy, skip):
    model = make("wav2vec2-pre")
    with pytest.raises(ValueError, match=r"unknown policy|do not"):
        sounding.wrap(model, policy, skip=skip)
    assert not any(isinstance(module, LayerStack) for module in model.modules())
    assert sounding.wrap(model).num_layers == 4


@pytest.mark.parametrize("training", [False, True])
def test_a_dynamic_model_is_in_the_mode_of_its_model(training):
    dynamic = sounding.wrap(make("ast").train(training))
    assert {module.training for module in dynamic.modules()} == {training}


def test_unwrap_twice_or_of_a_plain_model_is_refused():
    dynamic = sounding.wrap(make("ast"))
    sounding.unwrap(dynamic)
    with pytest.raises(ValueError, match="unwrapped already"):
        sounding.unwrap(dynamic)
    with pytest.raises(TypeError, match="DynamicModel"):
        sounding.unwrap(make("ast"))


@pytest.mark.parametrize("name", ["wav2vec2-post", "whisper-classification"])
def test_random_dropping_of_the_model_itself_is_off_while_wrapped(name):
    rate = {"layerdrop": 0.9} if "wav2vec2" in name else {"encoder_layerdrop": 0.9}
    model = make(name, **rate)
    dynamic = sounding.wrap(model).train()
    ran = []
    for layer in dynamic.stack.layers:
        layer.register_forward_hook(lambda *args: ran.append(1))
    for _ in range(5):
        dynamic(**inputs(model))
    assert len(ran) == 20
    sounding.unwrap(dynamic)
    owner = model.wav2vec2.encoder.config if "wav2vec2" in name else model.encoder
    assert owner.layerdrop == 0.9


def test_wrapping_a_model_of_a_lower_precision_keeps_both_working():
    dynamic = sounding.wrap(make("ast").to(torch.bfloat16))
    batch = {k: v.bfloat16() for k, v in inputs(dynamic.model).items()}
    out = dynamic(**batch, budget=2)
    assert out.logits.dtype == torch.bfloat16
    assert out.executed_layers.sum(-1).tolist() == [2, 2, 2]


def test_a_dynamic_model_shows_the_attributes_of_its_model():
    dynamic = sounding.wrap(make("ast"))
    assert dynamic.config is dynamic.model.config
    assert dynamic.main_input_name == "input_values"
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = dynamic.no_such_thing


# --- a call ---------------------------------------------------------------------------------


def test_output_attentions_is_refused_by_argument_and_by_config():
    dynamic = sounding.wrap(make("ast"))
    batch = inputs(dynamic.model)
    with pytest.raises(ValueError, match=r"unwrap the model, or call dynamic\.model"):
        dynamic(**batch, output_attentions=True)
    dynamic(**batch, output_attentions=False)
    dynamic.model.set_attn_implementation("eager")
    dynamic.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions"):
        dynamic(**batch)


def test_return_dict_false_is_refused_by_argument_and_by_config():
    dynamic = sounding.wrap(make("ast"))
    batch = inputs(dynamic.model)
    with pytest.raises(ValueError, match="return_dict=False"):
        dynamic(**batch, return_dict=False)
    dynamic(**batch, return_dict=True)
    dynamic.config.return_dict = False
    with pytest.raises(ValueError, match="return_dict=False"):
        dynamic(**batch)


@pytest.mark.parametrize("wanted", [-1, [0, 1], "all"])
def test_a_part_of_the_hidden_states_is_refused(wanted):
    dynamic = sounding.wrap(make("ast"))
    with pytest.raises(ValueError, match="True or False"):
        dynamic(**inputs(dynamic.model), output_hidden_states=wanted)


def test_a_call_without_the_input_says_which_is_missing():
    with pytest.raises(ValueError, match="'input_features' is missing"):
        sounding.wrap(make("whisper-classification"))(budget=1)


@torch.no_grad()
def test_arguments_by_position_are_those_by_name():
    dynamic = choosy("wav2vec2-post")
    batch = inputs(dynamic.model, lengths=[2100, 4000, 3333])
    named = dynamic(**batch, budget=2)
    placed = dynamic(batch["input_values"], batch["attention_mask"], budget=2)
    assert torch.equal(named.logits, placed.logits)
    assert torch.equal(named.executed_layers, placed.executed_layers)
    with pytest.raises(TypeError, match="repeated"):
        dynamic(batch["input_values"], **batch)


LENGTHS = {"wav2vec2-post": [2100, 4000, 3333], "whisper-classification": [61, 98, 37]}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask.flip(-1), "padding on the right"),
        (lambda mask: torch.where(torch.arange(mask.shape[1]) == 5, 0, mask), "on the right"),
        (lambda mask: mask * torch.tensor([1, 0, 1])[:, None], "no valid position"),
        (lambda mask: mask[:2], r"\[batch, positions\]"),
        (lambda mask: mask[:, :-7], r"\[batch, positions\]"),
        (lambda mask: torch.cat([mask, mask], -1), r"\[batch, positions\]"),
        (lambda mask: mask[:, None], r"\[batch, positions\]"),
        (lambda mask: mask[:, :0], r"\[batch, positions\]"),
    ],
)
def test_a_wrong_attention_mask_is_refused(name, change, message):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=LENGTHS[name])
    batch["attention_mask"] = change(batch["attention_mask"])
    with pytest.raises(ValueError, match=message):
        dynamic(**batch, budget=2)


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
@torch.no_grad()
def test_an_attention_mask_of_any_dtype_counts_alike(name, dtype):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=LENGTHS[name])
    expected = dynamic(**batch, budget=2)
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    out = dynamic(**batch, budget=2)
    assert torch.equal(out.executed_layers, expected.executed_layers)
    torch.testing.assert_close(out.logits, expected.logits)


@pytest.mark.parametrize("name", LENGTHS)
@torch.no_grad()
def test_an_attention_mask_without_padding_changes_nothing(name):
    dynamic = choosy(name)
    batch = inputs(dynamic.model)
    expected = dynamic(**batch, budget=2)
    mask = torch.ones(3, batch[dynamic.main_input_name].shape[-1])
    out = dynamic(**batch, attention_mask=mask.long(), budget=2)
    assert torch.equal(out.executed_layers, expected.executed_layers)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LENGTHS)
@torch.no_grad()
def test_the_choice_ignores_what_stands_in_the_padding(name):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=LENGTHS[name])
    main, time = dynamic.main_input_name, dynamic.backbone.time
    valid = batch["attention_mask"].bool()
    valid = valid[:, None] if time == 2 else valid
    outs = []
    for value in (0.0, 9.0):
        padded = {**batch, main: torch.where(valid, batch[main], torch.tensor(value))}
        outs.append(dynamic(**padded, budget=[1, 2, 3]))
    assert torch.equal(outs[0].executed_layers, outs[1].executed_layers)
    if "whisper" in name:  # wav2vec 2.0 convolves over the end of a clip, as it always does
        torch.testing.assert_close(outs[0].logits, outs[1].logits)


@torch.no_grad()
def test_weighted_layer_sum_works_at_every_budget():
    for name in ("wav2vec2-post", "whisper-classification"):
        dynamic = sounding.wrap(make(name, use_weighted_layer_sum=True))
        batch = inputs(dynamic.model)
        plain = dynamic.model(**batch).logits
        assert torch.equal(dynamic(**batch).logits, plain)
        for budget in (1, 2, 3):
            assert not torch.equal(dynamic(**batch, budget=budget).logits, plain)


# --- weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_state_dict_of_the_model_keeps_its_names(name):
    plain, wrapped = make(name), make(name)
    dynamic = sounding.wrap(wrapped)
    assert list(dynamic.model.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(dynamic.model.state_dict()[key], value)
    dynamic.model.load_state_dict(make(name, seed=3).state_dict())


def test_the_state_dict_of_a_dynamic_model_loads_into_another():
    one, other = choosy("wav2vec2-post"), sounding.wrap(make("wav2vec2-post", seed=3))
    other.load_state_dict(one.state_dict())
    batch = inputs(one.model)
    with torch.no_grad():
        outs = [dynamic(**batch, budget=[1, 2, 3]) for dynamic in (one, other)]
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert torch.equal(outs[0].executed_layers, outs[1].executed_layers)


def test_each_parameter_is_there_once():
    dynamic = choosy("whisper-generation")
    names = {name for name, _ in dynamic.named_parameters()}
    expected = {f"model.{name}" for name, _ in dynamic.model.named_parameters()}
    expected |= {f"policy.{name}" for name, _ in dynamic.policy.named_parameters()}
    assert names == expected
    buffers = {f"policy.{name}" for name, _ in dynamic.policy.named_buffers()}
    saved = {f"model.{name}" for name in dynamic.model.state_dict()}
    assert set(dynamic.state_dict()) == expected | buffers | saved


@pytest.fixture
def adapted(tmp_path):
    """A dynamic model with adapters and mean budgets, and where it was saved."""
    dynamic = choosy("whisper-classification", skip="adapter")
    for parameter in dynamic.skip.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    dynamic.mean_budgets = [(1.0, 0.0), (2.0, 0.2205), (4.0, 1.5)]
    dynamic.save_pretrained(tmp_path / "d")
    return dynamic, tmp_path / "d"


@torch.no_grad()
def test_adapters_and_mean_budgets_are_saved(adapted):
    dynamic, path = adapted
    again = sounding.load(path)
    assert again.skip.kind == "adapter"
    assert again.mean_budgets == dynamic.mean_budgets
    assert not any(module.training for module in again.modules())
    state = again.skip.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in dynamic.skip.state_dict().items())
    batch = inputs(dynamic.model, lengths=LENGTHS["whisper-classification"])
    for budget in (1, 2, [1, 3, 4], None, "mean:1", "mean:2", "mean:3.5", "mean:4"):
        before, after = (one(**batch, budget=budget) for one in (dynamic, again))
        assert torch.equal(before.logits, after.logits)
        assert torch.equal(before.executed_layers, after.executed_layers)
    lower = sounding.load(path, dtype=torch.bfloat16)
    batch = {k: v.bfloat16() for k, v in inputs(dynamic.model).items()}
    assert lower(**batch, budget=2).executed_layers.sum(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "foreign", "not listed"])
def test_damaged_adapters_are_refused(adapted, damage):
    path = adapted[1] / "skip.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        cut = damage in ("cut", "not listed")
        path.write_bytes(content[: len(content) // 2] if cut else content)
    if damage == "foreign":  # listed as it is, but of another model
        path.write_bytes((adapted[1] / "selector.safetensors").read_bytes())
        forge(adapted[1], lambda c: c["sha256"].update({path.name: sha256(path)}))
    elif damage == "not listed":
        forge(adapted[1], lambda c: c["sha256"].pop(path.name))
    with pytest.raises(ValueError, match=str(adapted[1])):
        sounding.load(adapted[1])


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "12",
        ["12"],
        {"1": 2},
        [1.0],
        [[1.0]],
        [[1.0, 0.5, 2]],
        [["one", 0.5]],
        [[1.0, None]],
        [[1.0, [0.5]]],
        [[1.0, float("nan")]],
        [[2.0, 0.5], [1.0, 0.2]],
        [[1.0, 0.5], [1.0, 0.2]],
    ],
    ids=repr,
)
def test_mean_budgets_of_the_wrong_kind_are_refused(adapted, value):
    forge(adapted[1], lambda config: config.update(mean_budgets=value))
    with pytest.raises(ValueError, match=str(adapted[1])):
        sounding.load(adapted[1])


@pytest.mark.parametrize("key", ["mean_budgets", "skip"])
def test_a_description_that_lacks_a_part_is_refused(adapted, key):
    forge(adapted[1], lambda config: config.pop(key))
    with pytest.raises(ValueError, match="is missing"):
        sounding.load(adapted[1])


def test_freezing_and_training_modes_reach_the_wrapped_model():
    dynamic = choosy("wav2vec2-post")
    dynamic.train()
    assert dynamic.model.training
    assert dynamic.stack.layers[0].training
    dynamic.eval()
    assert not dynamic.policy.training
    dynamic.freeze_base_model()
    assert not any(p.requires_grad for p in dynamic.stack.layers[0].parameters())


def test_the_default_policies_are_those_that_are_named():
    assert isinstance(sounding.wrap(make("ast")).policy, InputSelector)
    first = sounding.wrap(make("ast"), "first")
    assert isinstance(first.policy, StaticScores)
    ran = first(**inputs(first.model), budget=[1, 2, 3]).executed_layers
    assert ran.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]


# --- generate -------------------------------------------------------------------------------


GENERATE = {"max_new_tokens": 6, "do_sample": False}
SCORES = {**GENERATE, "return_dict_in_generate": True, "output_scores": True}
generating = pytest.mark.parametrize("name", ["whisper-generation", "moonshine-generation"])


def generation(name, frames=120, lengths=None):
    dynamic = choosy(name)
    batch = inputs(dynamic.model, lengths=lengths)
    batch.pop("decoder_input_ids")
    if "whisper" in name:
        batch["input_features"] = batch["input_features"][..., :frames]
    return dynamic, batch


def assert_same_text(one, other, rows=slice(None)):
    """The same tokens, and the same scores: the tokens of a random model say little."""
    steps = len(one["scores"])
    length = one["sequences"].shape[1]
    assert torch.equal(one["sequences"], other["sequences"][rows, :length])
    for a, b in zip(one["scores"], other["scores"][:steps], strict=True):
        torch.testing.assert_close(a, b[rows], rtol=1e-3, atol=1e-3)


@generating
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_at_full_depth_gives_the_tokens_of_the_plain_model(name, beams, quiet_generate):
    dynamic, batch = generation(name)
    plain = make(name).generate(**batch, **SCORES, num_beams=beams)
    for budget in (None, 4, "100%"):
        out = dynamic.generate(**batch, **SCORES, num_beams=beams, budget=budget)
        assert torch.equal(out["sequences"], plain["sequences"])
        assert all(map(torch.equal, out["scores"], plain["scores"]))
        assert out["executed_layers"].all()
    other = dynamic.generate(**batch, **SCORES, num_beams=beams, budget=2)
    assert not torch.equal(other["scores"][0], plain["scores"][0])


@generating
def test_generate_says_what_ran_and_each_input_is_as_if_alone(name, quiet_generate):
    dynamic, batch = generation(name)
    out = dynamic.generate(**batch, **SCORES, budget=[1, 2, 3])
    assert out["executed_layers"].sum(-1).tolist() == [1, 2, 3]
    for i in range(3):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        alone = dynamic.generate(**one, **SCORES, budget=i + 1)
        assert torch.equal(alone["executed_layers"][0], out["executed_layers"][i])
        assert_same_text(alone, out, [i])


@generating
def test_generate_again_and_again_keeps_nothing_between_calls(name, quiet_generate):
    dynamic, batch = generation(name)
    budgets = [1, None, 3, 1, None]
    tokens = [dynamic.generate(**batch, **GENERATE, budget=k).tolist() for k in budgets]
    assert tokens[0] == tokens[3]
    assert tokens[1] == tokens[4]
    assert dynamic.generate(**batch, **GENERATE, budget=3).tolist() == tokens[2]
    cached = dynamic.generate(**batch, **GENERATE, budget=2)
    assert torch.equal(cached, dynamic.generate(**batch, **GENERATE, budget=2, use_cache=False))


@generating
def test_generate_takes_a_mask_and_refuses_what_a_call_refuses(name, quiet_generate):
    dynamic, batch = generation(name)
    mask = torch.tensor([False, True, False, True])
    out = dynamic.generate(**batch, **GENERATE, mask=mask, return_dict_in_generate=True)
    assert out["executed_layers"].tolist() == [mask.tolist()] * 3
    for wrong in ({"budget": 5}, {"budget": [1]}, {"budget": 2, "mask": mask}):
        with pytest.raises(ValueError, match=r"give 1 to 4|one entry|not both"):
            dynamic.generate(**batch, **GENERATE, **wrong)
    with pytest.raises(ValueError, match="output_attentions"):
        dynamic.generate(**batch, **GENERATE, output_attentions=True)


@generating
@pytest.mark.parametrize("frames", [50, 120])
def test_generate_gives_the_hidden_states_of_all_layers(name, frames, quiet_generate):
    dynamic, batch = generation(name, frames)
    mask = torch.tensor([[True, False, True, False], [False, True, True, False], [True] * 4])
    out = dynamic.generate(
        **batch, **GENERATE, mask=mask, return_dict_in_generate=True, output_hidden_states=True
    )
    states = out["encoder_hidden_states"]
    assert len(states) == 5
    if "whisper" in name:  # a short clip is encoded at its own length
        assert states[0].shape[1] == frames // 2
    assert {tuple(state.shape) for state in states} == {tuple(states[0].shape)}
    assert torch.equal(states[0][1], states[1][1])
    assert not torch.equal(states[0][0], states[1][0])


@pytest.mark.parametrize("frames", [1, 37, 50, 119])
@pytest.mark.parametrize("beams", [1, 2])
def test_whisper_generates_from_clips_below_its_window(frames, beams, quiet_generate):
    dynamic, batch = generation("whisper-generation", frames)
    options = {**SCORES, "num_beams": beams}
    features = batch["input_features"]
    out = dynamic.generate(**batch, **options, budget=[1, 2, 4])
    assert out["executed_layers"].sum(-1).tolist() == [1, 2, 4]
    assert_same_text(dynamic.generate(features, **options, budget=[1, 2, 4]), out)
    if beams == 1:
        assert_same_text(dynamic.generate(features[1:2], **options, budget=2), out, [1])


def test_whisper_above_its_window_is_cut_by_the_model_and_refuses_budgets_per_input(quiet_generate):
    dynamic = choosy("whisper-generation")
    torch.manual_seed(1)
    features = torch.randn(2, 16, 300)
    mask = (torch.arange(300) < torch.tensor([[300], [170]])).long()
    options = {**GENERATE, "return_timestamps": True, "attention_mask": mask}
    dynamic.model.generation_config.no_timestamps_token_id = 20
    plain = make("whisper-generation")
    plain.generation_config.no_timestamps_token_id = 20
    expected = plain.generate(features, **options)
    assert torch.equal(dynamic.generate(features, **options), expected)
    dynamic.generate(features, **options, budget=2)
    with pytest.raises(ValueError, match="once per input"):
        dynamic.generate(features, **options, budget=[1, 2])
    with pytest.raises(ValueError, match="at most 120"):
        dynamic(input_features=features, decoder_input_ids=torch.ones(2, 1, dtype=torch.long))


def test_moonshine_generates_alike_alone_and_padded(quiet_generate):
    lengths = [2100, 4000, 3333]
    dynamic, batch = generation("moonshine-generation", lengths=lengths)
    together = dynamic.generate(**batch, **SCORES, budget=[1, 2, 3])
    for i, length in enumerate(lengths):
        clip = batch["input_values"][i : i + 1, :length]
        assert_same_text(dynamic.generate(clip, **SCORES, budget=i + 1), together, [i])


# --- documentation --------------------------------------------------------------------------

DOCS = Path(__file__).parent.parent / "docs" / "backbones.md"


@pytest.fixture
def own_backbones():
    """What a test registers is gone after it."""
    before = dict(BACKBONES._values)
    yield
    BACKBONES._values = before


@pytest.mark.parametrize("loop", ["in self.layers:", "in self.layers[: len(self.layers)]:"])
@torch.no_grad()
def test_the_example_of_the_documentation_works_and_is_right(loop, capsys, own_backbones):
    """Extracted and run: alone as in a padded batch, and cut as a model of those layers."""
    source = "\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL))
    assert source.count("in self.layers:") == 1
    space: dict = {}
    exec(source.replace("in self.layers:", loop), space)
    assert capsys.readouterr().out.count("True") == 4
    dynamic, features, mask = space["dynamic"], space["features"], space["mask"]
    assert space["out"].executed_layers.sum(-1).tolist() == [1, 3]
    assert len(dynamic(features, budget=2, output_hidden_states=True).hidden_states) == 5
    chosen = torch.tensor([[True, False, True, True], [False, True, False, True]])
    batch = {"input_features": features, "attention_mask": mask}
    together = dynamic(**batch, mask=chosen).last_hidden_state
    alone = dynamic(features[1:, :31], mask=chosen[1]).last_hidden_state
    torch.testing.assert_close(together[1:, :16], alone)
    cut = space["MurmurModel"](space["MurmurConfig"](num_hidden_layers=2)).eval()
    weights = dynamic.model.state_dict()
    for i, layer in enumerate((1, 3)):
        for key in cut.layers[0].state_dict():
            weights[f"layers.{i}.{key}"] = weights[f"layers.{layer}.{key}"]
    cut.load_state_dict({key: weights[key] for key in cut.state_dict()})
    torch.testing.assert_close(alone, cut(features[1:, :31]).last_hidden_state)
    with pytest.raises(ValueError, match="transformers has none"):
        dynamic.save_pretrained("never")
    assert not Path("never").exists()


def test_the_documentation_lists_what_is_supported():
    rows = re.findall(r"^\| ([^|`]+) \| `(\w+)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert rows == [(backbone.name, backbone.base) for backbone in BACKBONES.values()]


def test_the_documentation_names_every_attribute_and_method_of_a_backbone():
    text = DOCS.read_text("utf-8")
    public = [name for name in vars(Backbone) if not name.startswith("_")]
    assert all(f"`{name}" in text for name in [*public, *Backbone.__annotations__])


# --- inputs that are too short ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["wav2vec2-post", "moonshine-classification", "moonshine-ctc"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_input_shorter_than_a_frame_is_refused_by_its_row(name, wrapped):
    model = make(name)
    if not wrapped and name == "wav2vec2-post":
        pytest.skip("transformers' own head")
    called = sounding.wrap(model, exits=True) if wrapped else model
    batch = inputs(model, lengths=[4000, 5, 4000])
    labels = torch.ones(3, 2).long() if name.endswith("ctc") else torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="input 1 of the batch is too short: its 5 valid"):
        called(**batch, labels=labels)


def test_a_short_input_without_padding_is_refused_too():
    dynamic = sounding.wrap(make("wav2vec2-post"))
    with pytest.raises(ValueError, match="input 0 of the batch is too short"):
        dynamic(input_values=torch.randn(1, 20), budget=2)
    with pytest.raises(ValueError, match="input 0 of the batch is too short"):
        dynamic.forward_masks({"input_values": torch.randn(1, 20)}, torch.eye(4).bool())


# --- masked spans in training ----------------------------------------------------------------

MASKING = ("wav2vec2-post", "hubert-pre", "wavlm-post", "data2vec-audio", "unispeech-sat-pre")


def spans(name):
    features = {} if "wavlm" in name else {"mask_feature_prob": 0.3}  # transformers lacks a setting
    return {"mask_time_prob": 0.3, "mask_time_length": 10, **features}


@pytest.mark.parametrize("name", [*MASKING, "wav2vec2-bert-rotary"])
def test_a_batch_that_is_shorter_than_a_masked_span_is_trained_on(name):
    """transformers itself raises in the middle of a training; features are masked all the same."""
    length = 9 if name.startswith("wav2vec2-bert") else 600
    dynamic = sounding.wrap(make(name, **spans(name)), "first").train()
    batch = inputs(dynamic.model, batch=2, lengths=[length, length - 2])
    np.random.seed(0)
    first = dynamic(**batch, budget=2).logits
    again = dynamic(**batch, budget=2).logits
    assert torch.isfinite(first).all()
    if "wavlm" not in name:
        assert not torch.equal(first, again)  # other features are masked
    assert dynamic.config.mask_time_prob == 0.3


@pytest.mark.parametrize("name", [*MASKING, "wav2vec2-bert-rotary"])
def test_spans_that_fit_are_masked_as_transformers_does(name):
    parts = ("hidden", "attention", "activation", "feat_proj", "final", "conformer_conv")
    plain = make(name, **spans(name), **{f"{part}_dropout": 0.0 for part in parts}).train()
    batch = inputs(plain)
    np.random.seed(3)
    expected = plain(**batch).logits
    dynamic = sounding.wrap(plain)
    np.random.seed(3)
    assert torch.equal(dynamic(**batch).logits, expected)
    plain.eval()
    assert not torch.equal(dynamic(**batch).logits, expected)


# --- models that were never trained below full depth -----------------------------------------


def warned(call):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    return [one for one in said if one.category is UntrainedWarning]


def test_a_budget_below_full_depth_warns_once_where_the_model_was_never_trained_for_it():
    dynamic = sounding.wrap(make("ast"))
    batch = inputs(dynamic.model)
    assert not warned(lambda: dynamic(**batch))
    assert not warned(lambda: dynamic(**batch, budget=[4, 4, 4]))
    (said,) = warned(lambda: [dynamic(**batch, budget=[4, 4, 3]) for _ in range(3)])
    assert "never trained with layers left out" in str(said.message)
    assert "sounding train" in str(said.message)
    assert not warned(lambda: dynamic(**batch, mask=torch.tensor([1, 0, 1, 1]).bool()))


@pytest.mark.parametrize(
    "step",
    [
        lambda d, b: d(**b, budget=2),
        lambda d, b: d(**b, mask=torch.tensor([1, 0, 1, 1]).bool()),
        lambda d, b: d.forward_masks(b, torch.eye(4).bool()),
    ],
)
def test_a_step_below_full_depth_is_remembered_and_saved(step, tmp_path):
    dynamic = sounding.wrap(make("ast")).train()
    batch = inputs(dynamic.model)
    dynamic(**batch)
    assert not dynamic.trained
    with torch.no_grad():
        dynamic(**batch, budget=2)
    assert not dynamic.trained
    step(dynamic, batch)
    dynamic.eval().save_pretrained(tmp_path)
    again = sounding.load(tmp_path)
    for model in (dynamic, again):
        assert model.trained
        assert not warned(lambda model=model: model(**batch, budget=1))


def test_an_untrained_model_that_was_saved_still_warns(tmp_path):
    sounding.wrap(make("ast")).save_pretrained(tmp_path)
    again = sounding.load(tmp_path)
    assert warned(lambda: again(**inputs(again.model), budget=1))


@pytest.mark.parametrize("choice", [{"budget": 2}, {"decoder_budget": 1}])
def test_generation_with_fewer_layers_warns_too(choice):
    dynamic = sounding.wrap(make("whisper-generation"), "first")
    batch = {"input_features": inputs(dynamic.model)["input_features"]}
    (said,) = warned(lambda: dynamic.generate(**batch, **choice, max_new_tokens=2))
    assert ("decoder" in str(said.message)) == ("decoder_budget" in choice)
    dynamic.trained = dynamic.decoder_trained = True
    assert not warned(lambda: dynamic.generate(**batch, **choice, max_new_tokens=2))
