"""Dropping layers of the decoder through `generate`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
import transformers
from forge import forge
from test_executor import choosy

import sounding
from sounding.model.decoder import DecoderStack
from sounding.model.processors import WithoutTokens
from sounding.policies import InputSelector, StaticScores

LAYERS = 4  # of the decoder
NAMES = ["whisper-generation", "moonshine-generation"]
CUT = {"whisper-generation": "decoder_layers", "moonshine-generation": "decoder_num_hidden_layers"}
GENERATE = {"max_new_tokens": 6, "do_sample": False}
SCORES = {**GENERATE, "return_dict_in_generate": True, "output_scores": True}
MIXED = torch.tensor(
    [[False, True, False, True], [True, False, False, False], [False, True, False, True]]
)
each_model = pytest.mark.parametrize("name", NAMES)

pytestmark = pytest.mark.usefixtures("quiet_generate")


def make(name, layers=LAYERS):
    """A plain model whose texts differ in length, so that groups end at different steps."""
    model = tiny.make(name, **{CUT[name]: layers})
    model.generation_config.pad_token_id = 0
    return model


def wrapped(name):
    dynamic = sounding.wrap(make(name))
    torch.manual_seed(5)
    torch.nn.init.normal_(dynamic.policy.score.weight, std=3.0)
    return dynamic


def inputs(model, frames=120, **options):
    batch = tiny.inputs(model, **options)
    del batch["decoder_input_ids"]
    if "input_features" in batch:
        batch["input_features"] = batch["input_features"][..., :frames]
    return batch


def one(batch, row):
    return {name: value[row : row + 1] for name, value in batch.items()}


def cut(name, kept):
    """A plain model with just the decoder layers `kept`, their weights copied: the reference."""
    whole = make(name).state_dict()
    model = make(name, len(kept))
    state = {}
    for key in model.state_dict():
        source = key
        if "decoder.layers." in key:
            before, after = key.split("decoder.layers.")
            index, rest = after.split(".", 1)
            source = f"{before}decoder.layers.{kept[int(index)]}.{rest}"
        state[key] = whole[source]
    model.load_state_dict(state)
    return model


def assert_same(one, other, rows=slice(None)):
    """The same tokens, and scores of the steps that both have."""
    length = one["sequences"].shape[1]
    assert torch.equal(one["sequences"], other["sequences"][rows, :length])
    assert (other["sequences"][rows, length:] == 0).all()
    for a, b in zip(one["scores"], other["scores"], strict=False):
        torch.testing.assert_close(a, b[rows], rtol=1e-3, atol=1e-3)


class Count:
    """Of each run of each decoder layer: the rows and tokens."""

    def __init__(self, layers):
        self.runs = [[] for _ in layers]
        for index, layer in enumerate(layers):
            layer.register_forward_hook(
                lambda m, args, out, index=index: self.runs[index].append(args[0].shape[:2])
            )


# --- full depth -----------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("beams", [1, 3])
def test_full_depth_is_bit_identical_to_the_plain_model(name, beams):
    dynamic, batch = wrapped(name), inputs(make(name))
    plain = make(name).generate(**batch, **SCORES, output_logits=True, num_beams=beams)
    full = torch.ones(LAYERS, dtype=torch.bool)
    dynamic.decoder_policy = InputSelector(32, LAYERS, hidden=8).eval()  # has nothing to choose
    for ask in ({}, {"decoder_budget": 4}, {"decoder_budget": "100%"}, {"decoder_mask": full}):
        out = dynamic.generate(**batch, **SCORES, output_logits=True, num_beams=beams, **ask)
        assert torch.equal(out["sequences"], plain["sequences"])
        assert all(map(torch.equal, out["scores"], plain["scores"]))
        assert all(map(torch.equal, out["logits"], plain["logits"]))
        assert len(out["scores"]) == len(plain["scores"])
        assert out["executed_decoder_layers"].tolist() == [[True] * LAYERS] * 3
        tokens = dynamic.generate(**batch, **GENERATE, num_beams=beams, **ask)
        assert torch.equal(tokens, make(name).generate(**batch, **GENERATE, num_beams=beams))


# --- below full depth -----------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("kept", [[0], [0, 1], [0, 1, 2], [3], [1, 3], [0, 2, 3]], ids=str)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("cache", [True, False])
def test_k_layers_are_a_plain_model_of_just_these_layers(name, kept, beams, cache):
    """An independent reference, with a cache of its own."""
    dynamic, batch = wrapped(name), inputs(make(name))
    mask = torch.zeros(LAYERS, dtype=torch.bool)
    mask[kept] = True
    options = {**SCORES, "num_beams": beams, "use_cache": cache}
    asks = [{"decoder_mask": mask}, {"decoder_mask": mask.expand(3, -1)}]
    if kept == list(range(len(kept))):
        asks += [{"decoder_budget": len(kept)}, {"decoder_budget": [len(kept)] * 3}]
    expected = cut(name, kept).generate(**batch, **options)
    for ask in asks:
        out = dynamic.generate(**batch, **options, **ask)
        assert torch.equal(out["sequences"], expected["sequences"])
        assert len(out["scores"]) == len(expected["scores"])
        for a, b in zip(out["scores"], expected["scores"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert out["executed_decoder_layers"].tolist() == [mask.tolist()] * 3
    whole = dynamic.generate(**batch, **options)
    assert not torch.equal(whole["scores"][0], out["scores"][0])


@each_model
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("mask", [MIXED, MIXED.flip(0)], ids=["mixed", "reversed"])
def test_a_mixed_batch_is_each_input_alone(name, beams, mask):
    dynamic, batch = wrapped(name), inputs(make(name))
    options = {**SCORES, "num_beams": beams, "budget": 3}
    together = dynamic.generate(**batch, **options, decoder_mask=mask)
    assert torch.equal(together["executed_decoder_layers"], mask)
    assert together["executed_layers"].sum(1).tolist() == [3, 3, 3]
    for row in range(3):
        alone = dynamic.generate(**one(batch, row), **options, decoder_mask=mask[row])
        assert torch.equal(alone["executed_decoder_layers"][0], mask[row])
        if beams == 1:
            assert_same(alone, together, [row])
        else:
            length = alone["sequences"].shape[1]
            assert torch.equal(alone["sequences"], together["sequences"][[row], :length])
            torch.testing.assert_close(
                alone["sequences_scores"], together["sequences_scores"][[row]]
            )
    tokens = dynamic.generate(**batch, **GENERATE, num_beams=beams, budget=3, decoder_mask=mask)
    assert torch.equal(tokens, together["sequences"][:, -tokens.shape[1] :])


@each_model
def test_budgets_per_input_mix_with_those_of_the_encoder(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    out = dynamic.generate(**batch, **SCORES, budget=[1, 2, 4], decoder_budget=[4, 1, "50%"])
    assert out["executed_layers"].sum(1).tolist() == [1, 2, 4]
    assert out["executed_decoder_layers"].sum(1).tolist() == [4, 1, 2]
    for row, (k, d) in enumerate(zip([1, 2, 4], [4, 1, 2], strict=True)):
        alone = dynamic.generate(**one(batch, row), **SCORES, budget=k, decoder_budget=d)
        assert_same(alone, out, [row])


@pytest.mark.parametrize("frames", [37, 119])
@pytest.mark.parametrize("mask", [MIXED, MIXED[0]], ids=["mixed", "one"])
def test_short_clips_of_whisper_are_decoded_at_their_length(frames, mask):
    name = "whisper-generation"
    dynamic, batch = wrapped(name), inputs(make(name), frames)
    together = dynamic.generate(**batch, **SCORES, decoder_mask=mask)
    for row in range(3):
        kept = mask.expand(3, -1)[row].nonzero().squeeze(1).tolist()
        small = sounding.wrap(cut(name, kept))
        assert_same(small.generate(**one(batch, row), **SCORES), together, [row])


def test_padding_of_moonshine_stays_out_of_a_mixed_batch():
    name, lengths = "moonshine-generation", [2100, 4000, 3333]
    dynamic = wrapped(name)
    batch = inputs(dynamic.model, lengths=lengths)
    together = dynamic.generate(**batch, **SCORES, decoder_mask=MIXED)
    for row, length in enumerate(lengths):
        clip = batch["input_values"][row : row + 1, :length]
        assert_same(dynamic.generate(clip, **SCORES, decoder_mask=MIXED[row]), together, [row])


def test_texts_of_different_lengths_are_put_in_order_and_padded():
    """One group ends early: the end token is forced by a processor that looks at the width."""
    name = "whisper-generation"
    dynamic, batch = wrapped(name), inputs(make(name))
    rows = []

    def early(tokens, scores):
        rows.append(len(tokens))
        if len(tokens) == 1:  # the group of one
            scores = torch.full_like(scores, -1e9)
            scores[:, 2] = 0
        else:
            scores[:, 2] = -1e9
        return scores

    processors = transformers.LogitsProcessorList([early])
    out = dynamic.generate(
        **batch, **SCORES, decoder_mask=MIXED, logits_processor=processors, pad_token_id=7
    )
    assert set(rows) == {1, 2}
    assert out["sequences"].shape[0] == 3
    texts = out["sequences"].tolist()
    assert texts[1][-5:] == [7] * 5
    assert 2 not in texts[0][1:]
    assert 2 not in texts[2][1:]
    for scores in out["scores"][1:]:  # behind its end a group is sure of the pad token
        assert scores[1].argmax() == 7
        assert scores[1].isneginf().sum() == 39
        assert torch.isfinite(scores[[0, 2]]).any(-1).all()


@each_model
def test_several_texts_an_input_stay_with_their_input(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    options = {**SCORES, "num_beams": 3, "num_return_sequences": 2}
    if "whisper" in name:
        with pytest.raises(ValueError, match="num_return_sequences"):
            dynamic.generate(**batch, **options, decoder_mask=MIXED)
        return
    together = dynamic.generate(**batch, **options, decoder_mask=MIXED)
    for row in range(3):
        alone = dynamic.generate(**one(batch, row), **options, decoder_mask=MIXED[row])
        both = slice(2 * row, 2 * row + 2)
        length = alone["sequences"].shape[1]
        assert torch.equal(alone["sequences"], together["sequences"][both, :length])
        torch.testing.assert_close(alone["sequences_scores"], together["sequences_scores"][both])


def test_beam_indices_point_into_the_scores_of_the_whole_batch():
    name = "moonshine-generation"
    dynamic, batch = wrapped(name), inputs(make(name))
    out = dynamic.generate(**batch, **SCORES, num_beams=3, decoder_mask=MIXED)
    for row in range(3):
        used = out["beam_indices"][row]
        assert set((used[used >= 0] // 3).tolist()) == {row}
    steps = dynamic.model.compute_transition_scores(
        out["sequences"], out["scores"], out["beam_indices"], normalize_logits=False
    )
    lengths = (out["beam_indices"] >= 0).sum(1)
    torch.testing.assert_close(steps.sum(1) / lengths, out["sequences_scores"])


@each_model
def test_hidden_states_of_the_encoder_are_merged_and_those_of_the_decoder_are_of_what_ran(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    options = {**SCORES, "output_hidden_states": True, "budget": 2}
    mixed = dynamic.generate(**batch, **options, decoder_mask=MIXED)
    alike = dynamic.generate(**batch, **options, decoder_mask=MIXED[0])
    assert len(mixed["encoder_hidden_states"]) == 5
    for a, b in zip(mixed["encoder_hidden_states"], alike["encoder_hidden_states"], strict=True):
        torch.testing.assert_close(a, b)
    assert mixed.get("cache") is None
    assert mixed.get("decoder_hidden_states") is None
    assert {len(step) for step in alike["decoder_hidden_states"]} == {3}


# --- what is executed -----------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("cache", [True, False])
def test_a_skipped_layer_never_runs_neither_for_the_prompt_nor_in_later_steps(name, cache):
    dynamic, batch = wrapped(name), inputs(make(name))
    seen = Count(dynamic.decoder_stack.layers)
    out = dynamic.generate(**batch, **SCORES, decoder_mask=MIXED, use_cache=cache)
    steps = len(out["scores"])
    assert seen.runs[2] == []
    assert [rows for rows, _ in seen.runs[0]] == [1] * steps
    assert [rows for rows, _ in seen.runs[1]] == [2] * steps
    assert seen.runs[3] == seen.runs[1]
    tokens = [count for _, count in seen.runs[1]]
    assert tokens == ([1] * steps if cache else list(range(1, steps + 1)))


@each_model
def test_a_prompt_runs_just_the_kept_layers(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    prompt = torch.tensor([[1, 5, 6, 7]] * 3)
    prompt[:, 2] = torch.tensor([8, 9, 10])
    seen = Count(dynamic.decoder_stack.layers)
    out = dynamic.generate(**batch, **SCORES, decoder_mask=MIXED, decoder_input_ids=prompt)
    assert seen.runs[2] == []
    assert seen.runs[1][0] == (2, 4)
    assert torch.equal(out["sequences"][:, :4], prompt)
    for row in range(3):
        kept = MIXED[row].nonzero().squeeze(1).tolist()
        alone = cut(name, kept).generate(
            **one(batch, row), **SCORES, decoder_input_ids=prompt[row : row + 1]
        )
        assert_same(alone, out, [row])


@each_model
def test_what_is_cached_of_a_skipped_layer_is_one_number_a_position(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    mask = torch.tensor([False, True, False, True])
    cache = dynamic.generate(**batch, **SCORES, decoder_mask=mask)["cache"]
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        lengths = {layer.keys.shape[-2] for layer in part.layers}
        assert len(lengths) == 1
        sizes = [layer.keys.shape[1] * layer.keys.shape[3] for layer in part.layers]
        assert sizes == [1, 32, 1, 32]


def test_detecting_the_language_runs_just_the_kept_layers():
    name = "whisper-generation"
    dynamic, batch = wrapped(name), inputs(make(name))
    settings = dynamic.model.generation_config
    settings.lang_to_id = {"<|en|>": 30, "<|de|>": 31, "<|fr|>": 32}
    settings.task_to_id = {"transcribe": 33, "translate": 34}
    settings.no_timestamps_token_id = 35
    settings.is_multilingual = True
    seen = Count(dynamic.decoder_stack.layers)
    dynamic.generate(**batch, **GENERATE, decoder_mask=MIXED, task="transcribe")
    assert seen.runs[2] == []
    assert seen.runs[1]
    for languages in (["en", "de", "fr"], ("en", "de", "fr")):
        out = dynamic.generate(
            **batch, **SCORES, decoder_mask=MIXED, task="transcribe", language=languages
        )
        assert out["sequences"][:, 1].tolist() == [30, 31, 32]


# --- who chooses ----------------------------------------------------------------------------


def deciding(features=None):
    """A selector; one whose choice really depends on its input, where it has seen features."""
    torch.manual_seed(3)
    selector = InputSelector(32, LAYERS, hidden=16)
    torch.nn.init.normal_(selector.score.weight, std=20.0)
    if features is not None:  # standardizes by what it sees in training
        selector.scores(features, None, torch.full([len(features)], 2))
    return selector.eval()


@each_model
def test_a_selector_reads_the_output_of_the_encoder(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    options = {**SCORES, "budget": 2, "output_hidden_states": True}
    states = dynamic.generate(**batch, **options)["encoder_hidden_states"][-1]
    dynamic.decoder_policy = deciding(states)
    seen = []
    dynamic.decoder_policy.register_forward_pre_hook(lambda module, args: seen.append(args))
    out = dynamic.generate(**batch, **SCORES, budget=2, decoder_budget=2)
    features, frame_mask, k = seen[0]
    assert torch.equal(features, states)
    assert (frame_mask, k.tolist()) == (None, [2, 2, 2])
    chosen = out["executed_decoder_layers"]
    assert chosen.sum(1).tolist() == [2, 2, 2]
    assert len(torch.unique(chosen, dim=0)) > 1, "the choice must depend on the input here"
    for row in range(3):
        alone = dynamic.generate(**one(batch, row), **SCORES, budget=2, decoder_budget=2)
        assert torch.equal(alone["executed_decoder_layers"][0], chosen[row])
        assert_same(alone, out, [row])
        fixed = dynamic.generate(**one(batch, row), **SCORES, budget=2, decoder_mask=chosen[row])
        assert_same(fixed, out, [row])


class Reading(StaticScores):
    """Scores that ask for the states all the same."""

    reads = 1


def test_a_selector_does_not_read_padding():
    name, lengths = "moonshine-generation", [2100, 4000, 3333]
    dynamic = wrapped(name)
    dynamic.decoder_policy = deciding()
    batch = inputs(dynamic.model, lengths=lengths)
    together = dynamic.generate(**batch, **SCORES, decoder_budget=[1, 2, 3])
    for row, length in enumerate(lengths):
        clip = batch["input_values"][row : row + 1, :length]
        alone = dynamic.generate(clip, **SCORES, decoder_budget=row + 1)
        assert torch.equal(
            alone["executed_decoder_layers"][0], together["executed_decoder_layers"][row]
        )
        assert_same(alone, together, [row])
    whisper = wrapped("whisper-generation")
    seen = []
    whisper.decoder_policy = Reading.first(LAYERS)
    whisper.decoder_policy.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    features = inputs(whisper.model)
    mask = (torch.arange(120) < torch.tensor([[120], [80], [61]])).long()
    whisper.generate(**features, **GENERATE, attention_mask=mask, decoder_budget=2)
    assert seen[0].sum(1).tolist() == [60, 40, 31]


def test_a_static_selector_keeps_its_best_layers_for_all():
    dynamic, batch = wrapped("whisper-generation"), inputs(make("whisper-generation"))
    dynamic.decoder_policy = StaticScores(torch.tensor([0.0, 3.0, 1.0, 2.0]))
    out = dynamic.generate(**batch, **SCORES, decoder_budget=2)
    assert out["executed_decoder_layers"].tolist() == [[False, True, False, True]] * 3
    expected = cut("whisper-generation", [1, 3]).generate(**batch, **SCORES)
    assert_same(expected, out)


def test_a_selector_of_another_number_of_layers_is_refused():
    dynamic, batch = wrapped("whisper-generation"), inputs(make("whisper-generation"))
    dynamic.decoder_policy = StaticScores.first(3)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        dynamic.generate(**batch, **GENERATE, decoder_budget=2)


# --- save, load, unwrap ---------------------------------------------------------------------


@each_model
def test_the_selector_of_the_decoder_is_saved_and_loaded(name, tmp_path):
    dynamic, batch = wrapped(name), inputs(make(name))
    dynamic.decoder_policy = deciding()
    dynamic.save_pretrained(tmp_path / "d")
    again = sounding.load(tmp_path / "d")
    assert not again.decoder_policy.training
    expected = dynamic.generate(**batch, **SCORES, budget=2, decoder_budget=2)
    out = again.generate(**batch, **SCORES, budget=2, decoder_budget=2)
    assert torch.equal(expected["executed_decoder_layers"], out["executed_decoder_layers"])
    assert torch.equal(expected["sequences"], out["sequences"])
    plain = type(dynamic.model).from_pretrained(tmp_path / "d")
    assert plain.state_dict().keys() == make(name).state_dict().keys()


def test_directories_without_a_selector_of_the_decoder_load(tmp_path):
    dynamic = wrapped("whisper-generation")
    dynamic.save_pretrained(tmp_path / "d")
    assert not (tmp_path / "d" / "decoder_selector.safetensors").exists()
    forge(tmp_path / "d", lambda config: config.pop("decoder_selector"))  # as before there was one
    assert sounding.load(tmp_path / "d").decoder_policy is None


@pytest.mark.parametrize("damage", ["missing", "changed", "unlisted", "kind", "text"])
def test_a_damaged_selector_of_the_decoder_is_refused(damage, tmp_path):
    dynamic = wrapped("whisper-generation")
    dynamic.decoder_policy = deciding()
    dynamic.save_pretrained(tmp_path / "d")
    weights = tmp_path / "d" / "decoder_selector.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "unlisted":
        forge(tmp_path / "d", lambda config: config["sha256"].pop(weights.name))
    elif damage == "kind":
        forge(tmp_path / "d", lambda config: config["decoder_selector"].update(kind="oracle"))
    else:
        forge(tmp_path / "d", decoder_selector="input")
    with pytest.raises(ValueError, match=r"missing|damaged|not the file|unknown policy|not list"):
        sounding.load(tmp_path / "d")


def test_a_module_that_load_could_not_build_is_refused_when_saving(tmp_path):
    dynamic = wrapped("whisper-generation")
    dynamic.decoder_policy = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="cannot build a Linear"):
        dynamic.save_pretrained(tmp_path / "d")
    assert not (tmp_path / "d").exists()


@each_model
def test_unwrap_gives_the_decoder_back_as_it_was(name):
    plain = make(name)
    decoder = plain.get_decoder()
    layers, keys = decoder.layers, list(plain.state_dict())
    batch = inputs(plain)
    expected = plain.generate(**batch, **SCORES)
    dynamic = sounding.wrap(plain)
    assert isinstance(decoder.layers, DecoderStack)
    assert list(plain.state_dict()) == keys
    dynamic.generate(**batch, **GENERATE, decoder_mask=MIXED)
    assert sounding.unwrap(dynamic) is plain
    assert decoder.layers is layers
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(LAYERS))
    assert [layer.encoder_attn.layer_idx for layer in layers] == list(range(LAYERS))
    out = plain.generate(**batch, **SCORES)
    assert torch.equal(out["sequences"], expected["sequences"])
    assert all(map(torch.equal, out["scores"], expected["scores"]))


@each_model
def test_an_error_in_mid_generation_leaves_the_model_as_it_was(name):
    dynamic, batch = wrapped(name), inputs(make(name))
    before = dynamic.generate(**batch, **SCORES)
    steps = []

    def stop(tokens, scores):
        steps.append(tokens)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return scores

    processors = transformers.LogitsProcessorList([stop])
    with pytest.raises(KeyboardInterrupt):
        dynamic.generate(**batch, **GENERATE, decoder_mask=MIXED, logits_processor=processors)
    for generate in (dynamic.model.generate, dynamic.generate):
        after = generate(**batch, **SCORES)
        assert torch.equal(before["sequences"], after["sequences"])
        assert all(map(torch.equal, before["scores"], after["scores"]))
    assert after["executed_decoder_layers"].all()
    whole = tiny.inputs(dynamic.model)
    assert torch.equal(dynamic(**whole).logits, make(name)(**whole).logits)


def test_threads_with_different_budgets_do_not_disturb_one_another():
    dynamic, batch = wrapped("whisper-generation"), inputs(make("whisper-generation"))
    budgets = [1, None, 2, 3, None, [1, 2, 3], 4, 1] * 3

    def run(k):
        return dynamic.generate(**batch, **GENERATE, decoder_budget=k).tolist()

    expected = [run(k) for k in budgets]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, budgets)) == expected


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        ({"decoder_budget": 5}, "of the decoder: budget '5' .* 4 layers"),
        ({"decoder_budget": 0}, "of the decoder: budget '0' is not allowed: give"),
        ({"decoder_budget": 1.5}, "of the decoder: budget 1.5 is not allowed"),
        ({"decoder_budget": float("nan")}, "of the decoder: budget nan is not allowed"),
        ({"decoder_budget": "mean:2"}, "of the decoder"),
        ({"decoder_budget": [1, 2]}, "2 entries for a batch of 3"),
        ({"decoder_budget": 2, "decoder_mask": MIXED}, "not both"),
        ({"decoder_mask": torch.ones(2, dtype=torch.bool)}, "of the decoder: a mask is bool"),
        ({"decoder_mask": torch.ones(4)}, "of the decoder: a mask is bool"),
        ({"decoder_mask": torch.zeros(4, dtype=torch.bool)}, "at least one layer"),
        ({"decoder_budget": 2, "return_token_timestamps": True}, "return_token_timestamps"),
        ({"decoder_mask": MIXED, "prefix_allowed_tokens_fn": print}, "prefix_allowed_tokens_fn"),
        ({"decoder_mask": MIXED, "temperature": (0.0, 0.5)}, "temperatures"),
        ({"decoder_mask": MIXED, "return_timestamps": True}, "return_timestamps"),
    ],
)
def test_bad_budgets_and_what_does_not_go_with_them_are_refused(ask, match):
    dynamic, batch = wrapped("whisper-generation"), inputs(make("whisper-generation"))
    with pytest.raises(ValueError, match=match):
        dynamic.generate(**batch, **GENERATE, **ask)


def test_time_stamps_of_a_short_clip_are_refused_as_its_text_would_come_twice():
    dynamic = wrapped("whisper-generation")
    batch = inputs(dynamic.model, frames=60)
    with pytest.raises(ValueError, match="return_timestamps need clips that are padded"):
        dynamic.generate(**batch, **GENERATE, return_timestamps=True)


@pytest.mark.parametrize(
    ("frames", "ask"),
    [
        (60, {}),
        (60, {"decoder_mask": MIXED}),
        (None, {"budget": 2}),
        (None, {"mask": torch.tensor([False, True, True, True])}),
        (None, {"decoder_budget": 2}),
        (None, {"decoder_mask": MIXED}),
    ],
)
def test_a_clip_is_read_once_even_if_the_model_would_write_time_stamps(frames, ask):
    dynamic = wrapped("whisper-generation")
    batch = inputs(dynamic.model) if frames is None else inputs(dynamic.model, frames=frames)
    free = dynamic.generate(**batch, **GENERATE, **ask)
    first = int(free[:, 1:].min()) - 2  # all that it writes is then a time stamp
    dynamic.model.generation_config.no_timestamps_token_id = first
    seen = Count(dynamic.decoder_stack.layers)
    assert (dynamic.generate(**batch, **GENERATE, **ask)[:, 1:] <= first).all()
    assert len(seen.runs[0]) <= 2 * GENERATE["max_new_tokens"]  # twice for two groups


def test_a_call_and_a_model_without_a_decoder_refuse_a_budget_for_it():
    dynamic = wrapped("whisper-generation")
    with pytest.raises(ValueError, match="options of generate"):
        dynamic(**tiny.inputs(dynamic.model), decoder_budget=2)
    ctc = choosy("parakeet-ctc")
    assert ctc.decoder_stack is None
    with pytest.raises(ValueError, match="no decoder"):
        ctc.generate(**tiny.inputs(ctc.model), decoder_budget=2)


def test_above_the_window_one_mask_holds_for_all_and_mixed_ones_are_refused():
    name = "whisper-generation"
    dynamic = wrapped(name)
    torch.manual_seed(1)
    features = torch.randn(2, 16, 300)
    mask = (torch.arange(300) < torch.tensor([[300], [170]])).long()
    options = {**GENERATE, "return_timestamps": True, "attention_mask": mask}
    reference = cut(name, [0, 2])
    for model in (dynamic.model, reference):
        model.generation_config.no_timestamps_token_id = 20
    kept = torch.tensor([True, False, True, False])
    expected = reference.generate(features, **options)
    assert torch.equal(dynamic.generate(features, **options, decoder_mask=kept), expected)
    with pytest.raises(ValueError, match="more than once"):
        dynamic.generate(features, **options, decoder_budget=[1, 2])
    dynamic.decoder_policy = deciding()
    with pytest.raises(ValueError, match="more than once"):
        dynamic.generate(features, **options, decoder_budget=2)


def test_tokens_are_ruled_out_as_transformers_does_it():
    torch.manual_seed(0)
    tokens, ids = [0, 3, 7, 39, 40, 99, -1], torch.zeros(2, 1, dtype=torch.long)
    scores = torch.randn(2, 40)
    expected = transformers.SuppressTokensLogitsProcessor(tokens)(ids, scores.clone())
    torch.testing.assert_close(WithoutTokens(tokens, 40)(ids, scores), expected)
    assert scores.isfinite().all()  # which are the caller's
