"""Greedy generation with drafts: the same tokens in fewer passes of the whole decoder."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from test_decoder import LAYERS, Count, inputs, make
from transformers import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor

import sounding
from sounding.model import drafts
from sounding.model.drafters import LayerDraft, TextDrafts, common, frequent, project
from sounding.model.processors import quick

WHISPER, MOONSHINE = "whisper-generation", "moonshine-generation"
GREEDY = {"do_sample": False, "num_beams": 1, "return_dict_in_generate": True}
END, NEW = 2, 15
each_model = pytest.mark.parametrize("name", [WHISPER, MOONSHINE])

pytestmark = pytest.mark.usefixtures("quiet_generate")


@pytest.fixture(params=[WHISPER, MOONSHINE])
def name(request):
    return request.param


def wrapped(name):
    return sounding.wrap(make(name), "first")


def clip(dynamic, row=0, frames=120):
    return {n: v[row : row + 1] for n, v in inputs(dynamic.model, frames).items()}


def ends(dynamic, length):
    """A rule that ends a text at that length: random weights seldom do."""

    def end(tokens, scores):
        scores = scores.clone()
        scores[:, END] = 1e4 if tokens.shape[1] == length else -1e4
        return scores

    return {"logits_processor": transformers.LogitsProcessorList([end])}


def said(out):
    """The tokens behind the prompt, which is one token here."""
    return out["sequences"][0, 1:].tolist()


def both(dynamic, batch, draft, **options):
    """Greedy generation and with drafts, of plain `transformers` and of ours."""
    options = {**GREEDY, "max_new_tokens": NEW, **options}
    plain = dynamic.generate(**batch, **options)
    out = dynamic.generate(**batch, **options, draft=draft)
    assert torch.equal(out["sequences"], plain["sequences"])
    return plain, out


def counted(out):
    return int(out["passes"]), out["accepted"].tolist()[0]


# --- texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [120, 77])
def test_a_right_text_takes_one_pass(name, frames):
    dynamic = wrapped(name)
    batch = clip(dynamic, frames=frames)
    rule = ends(dynamic, 10)
    text = said(dynamic.generate(**batch, **GREEDY, **rule, max_new_tokens=NEW))
    assert text[-1] == END
    for draft in (text[:-1], text, [*text, 5, 6, 7]):  # without its end, with it, and past it
        _, out = both(dynamic, batch, lambda states, draft=draft: draft, **rule)
        assert counted(out) == (1, [len(text)])


def test_a_wrong_an_empty_and_a_short_text_cost_time_only(name):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    text = said(dynamic.generate(**batch, **GREEDY, max_new_tokens=NEW))
    other = next(token for token in range(3, 40) if token not in text)
    _, wrong = both(dynamic, batch, lambda states: [other] * 8)
    assert counted(wrong) == (NEW, [0] * NEW)
    _, empty = both(dynamic, batch, lambda states: [])
    assert counted(empty) == (NEW, [0] * NEW)
    _, short = both(dynamic, batch, lambda states: text[:6])
    assert counted(short) == (NEW - 6, [6] + [0] * (NEW - 7))


def test_a_text_with_errors_is_found_again(name):
    """A token replaced, one too many and one too few: each costs some passes at most."""
    dynamic = wrapped(name)
    batch, varied = clip(dynamic), {"no_repeat_ngram_size": 1, "suppress_tokens": [END]}
    text = said(dynamic.generate(**batch, **GREEDY, **varied, max_new_tokens=NEW))
    other = next(token for token in range(3, 40) if token not in text)
    for draft in (
        [*text[:5], other, *text[6:]],
        [*text[:5], other, *text[5:]],
        [*text[:5], *text[6:]],
    ):
        _, out = both(dynamic, batch, lambda states, draft=draft: draft, **varied)
        passes, accepted = counted(out)
        assert passes <= 5
        assert accepted[0] == 5
        assert sum(accepted) >= NEW - 5


def test_after_an_error_a_text_goes_on_behind_it():
    draft = TextDrafts([11, 12, 13, 14, 15, 16, 17], END)
    assert draft.propose([1], 99) == [11, 12, 13, 14, 15, 16, 17, END]
    assert draft.propose([1, 11, 12, 30], 99) == [14, 15, 16]  # for 13
    assert draft.propose([1, 11, 12, 30, 14, 16], 99) == [17, END]  # 15 was one too many
    assert draft.propose([1, 11, 12, 30, 14, 16, 31], 99) == [END]  # 31 was missing, or for 17
    assert draft.propose([1, 11, 12, 30, 14, 16, 31, 17], 99) == [END]
    again = TextDrafts([5, 6, 7, 8, 5, 6, 9], END)  # the longest gram decides, then the nearest
    again.propose([1], 99)
    assert again.propose([1, 5, 6, 7, 8, 4, 6], 3) == [9, END]


def test_the_room_bounds_a_draft():
    draft = TextDrafts([11, 12, 13], END)
    assert draft.propose([1], 2) == [11, 12]
    assert draft.propose([1, 11, 12, 13], 0) == []


# --- layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, LAYERS - 1])
@pytest.mark.parametrize("frames", [120, 77])
def test_k_layers_draft_and_the_text_is_that_of_all(name, k, frames):
    dynamic = wrapped(name)
    both(dynamic, clip(dynamic, 0, frames), k)
    both(dynamic, clip(dynamic, 1, frames), LayerDraft(k, vocabulary=range(3, 20)))
    both(dynamic, clip(dynamic, 1, frames), torch.arange(LAYERS) >= LAYERS - k)
    both(dynamic, clip(dynamic, 2, frames), k, **ends(dynamic, 7))


def silent(dynamic, kept):
    """Make the other layers of the decoder pass on what they get, so that `kept` are right."""
    with torch.no_grad():
        for index, layer in enumerate(dynamic.decoder_stack.layers):
            parts = [n for n, _ in layer.named_parameters()]
            for one in parts if index not in kept else ():
                if any(word in one for word in ("out_proj", "o_proj", "fc2")):
                    layer.get_parameter(one).zero_()
    return dynamic


def test_layers_that_are_always_right_are_accepted_and_their_drafts_grow(name):
    dynamic = silent(wrapped(name), [0, 2])
    mask = torch.tensor([True, False, True, False])
    options = {"max_new_tokens": NEW, "eos_token_id": 39, "suppress_tokens": [39]}
    draft = LayerDraft(mask, vocabulary=40)
    _, out = both(dynamic, clip(dynamic), draft, **options)
    passes, accepted = counted(out)
    assert sum(accepted) + passes == NEW
    assert passes < NEW  # how many were sure enough is up to the weights


def test_draft_layers_and_full_passes_run_so_often(name, monkeypatch):
    from sounding.model import drafters

    monkeypatch.setattr(drafters, "SURE", 0.0)  # no draft ends early
    dynamic = silent(wrapped(name), [0, 2])
    count = Count(dynamic.decoder_stack.layers)
    mask = torch.tensor([True, False, True, False])
    batch = clip(dynamic)
    options = {**GREEDY, "max_new_tokens": NEW, "eos_token_id": 39, "suppress_tokens": [39]}
    out = dynamic.generate(**batch, **options, draft=LayerDraft(mask, vocabulary=39))
    passes, accepted = counted(out)
    # drafts of 5 and 7, all kept; one token is left: no room for a draft
    assert (passes, accepted) == (3, [5, 7, 0])
    full = [tuple(shape) for shape in count.runs[1]]
    assert full == [(1, 6), (1, 8), (1, 1)]  # the prompt of 1 and 5; the own token and 7
    assert count.runs[3] == count.runs[1]
    assert len(count.runs[0]) == len(count.runs[2]) == 3 + 5 + 7
    tokens = sum(shape[1] for shape in count.runs[0])
    # each token once by the drafter: not the last of a draft, and not the last of the text
    assert tokens == 15 + (1 + 4 + 2 + 6)
    assert out["executed_decoder_layers"].tolist() == [[True] * LAYERS]


def test_a_passed_layer_does_not_run_for_a_draft(name):
    dynamic = wrapped(name)
    count = Count(dynamic.decoder_stack.layers)
    out = dynamic.generate(**clip(dynamic), **GREEDY, max_new_tokens=NEW, draft=2)
    assert len(count.runs[2]) == len(count.runs[3]) == int(out["passes"])
    assert len(count.runs[0]) == len(count.runs[1]) > int(out["passes"])


@pytest.mark.parametrize("allowed", [[7, 9], [END]])
def test_a_list_of_tokens_is_what_may_be_drafted_and_a_draft_ends_with_the_text(name, allowed):
    dynamic = wrapped(name)
    seen = []
    loop = drafts.drafting(LayerDraft(2, allowed), dynamic.decoder_stack, dynamic.model)
    begin = loop.begin

    def watched(*args):
        drafter = begin(*args)
        propose = drafter.propose
        drafter.propose = lambda *a: seen.append([*propose(*a)]) or seen[-1]
        return drafter

    loop.begin = watched
    batch = clip(dynamic)
    dynamic.model.generate(**batch, **GREEDY, max_new_tokens=NEW, custom_generate=loop)
    assert {token for one in seen for token in one} <= {*allowed, END}
    assert seen[0]
    assert all(END not in one[:-1] for one in seen)


def test_the_commonest_tokens_of_texts_come_first():
    assert frequent([[5, 5, 3], [3, 5, 9]], 2) == [5, 3]
    assert frequent([[9, 4, 4, 9]], 1) == [4]


def test_the_part_of_the_weights_is_taken_anew_when_they_change():
    weight = torch.randn(10, 4)
    draft = LayerDraft(1, [7, 3])
    rows, tokens = draft.shortlist(weight, END)
    assert tokens == [2, 3, 7]
    assert torch.equal(rows, weight[[2, 3, 7]])
    assert draft.shortlist(weight, END)[0] is rows
    weight.mul_(2)
    assert torch.equal(draft.shortlist(weight, END)[0], weight[[2, 3, 7]])


# --- what holds -----------------------------------------------------------------------------


@pytest.mark.parametrize("new", [1, 2, 3, 6, 7, NEW])
def test_max_new_tokens_ends_a_text_in_the_middle_of_a_draft(name, new):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    text = said(dynamic.generate(**batch, **GREEDY, max_new_tokens=NEW))
    _, out = both(dynamic, batch, lambda states: text, max_new_tokens=new)
    assert len(said(out)) == new
    assert counted(out) == (1, [new - 1])  # nothing is read that could not be said
    both(dynamic, batch, 2, max_new_tokens=new)


@pytest.mark.parametrize("budget", [1, 3, [2]])
def test_budgets_of_the_encoder_keep_working(name, budget):
    dynamic = wrapped(name)
    for draft in (2, lambda states: [5, 6, 7]):
        plain, out = both(dynamic, clip(dynamic), draft, budget=budget)
        assert torch.equal(out["executed_layers"], plain["executed_layers"])


def test_processors_see_what_was_really_said_and_each_token_once(name):
    """So that one that counts, or looks back, does what it does without drafts."""
    dynamic = wrapped(name)
    batch = clip(dynamic)
    text = said(dynamic.generate(**batch, **GREEDY, max_new_tokens=NEW))
    calls = []

    def run(**draft):
        seen = []
        calls.append(seen)

        def watch(tokens, scores):
            seen.append(tokens.tolist())
            return scores

        processors = transformers.LogitsProcessorList([watch])
        options = {**GREEDY, "max_new_tokens": NEW, "logits_processor": processors}
        return dynamic.generate(**batch, **options, **draft)

    greedy, drafted = run(), run(draft=lambda states: [*text[:4], 3, *text[5:]])
    assert torch.equal(greedy["sequences"], drafted["sequences"])
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [3, 4, 5, 6, 7, 8, 9, 10]},
        {"begin_suppress_tokens": list(range(3, 30))},
        {"min_new_tokens": 9},
        {"repetition_penalty": 1.3},
        {"bad_words_ids": [[5], [6, 7]]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_rules_of_generate_hold(name, options):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    text = said(dynamic.generate(**batch, **GREEDY, max_new_tokens=NEW, **options))
    for draft in (2, lambda states: text, lambda states: text[::2]):
        both(dynamic, batch, draft, **options)


def test_two_tokens_that_noise_could_exchange_are_decided_without_drafts(name, monkeypatch):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    plain = dynamic.generate(**batch, **GREEDY, output_scores=True, max_new_tokens=NEW)
    gaps = [float(-s[0].topk(2).values.diff()) for s in plain["scores"]]
    nearest = min(range(NEW), key=lambda step: gaps[step])
    monkeypatch.setattr(drafts, "TIE", gaps[nearest] * 1.01)
    text = said(plain)
    _, out = both(dynamic, batch, lambda states: text)
    passes, accepted = counted(out)  # one up to there, and token by token to decide
    assert accepted[: nearest + 2] == [nearest] + [0] * (nearest + 1)
    assert all(accepted[nearest + 2 :])  # then with drafts again
    assert passes == len(accepted)


def test_what_noise_could_decide_is_computed_as_by_transformers_bit_by_bit(name, monkeypatch):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    calls = []

    def keep(tokens, scores):
        calls.append(scores.clone())
        return scores

    options = {**GREEDY, "max_new_tokens": NEW}
    options["logits_processor"] = transformers.LogitsProcessorList([keep])
    text = said(dynamic.generate(**batch, **options))
    plain = calls[:]
    calls.clear()
    monkeypatch.setattr(drafts, "TIE", 1e9)  # all are near ties
    dynamic.generate(**batch, **options, draft=lambda states: text)
    assert len(calls) == 2 * NEW
    assert all(map(torch.equal, plain, calls[1::2]))


def test_a_tensor_of_tokens_is_returned_without_a_dictionary(name):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    options = {"do_sample": False, "max_new_tokens": NEW}
    plain = dynamic.generate(**batch, **options)
    assert torch.equal(dynamic.generate(**batch, **options, draft=2), plain)


def test_a_drafter_hears_what_the_encoder_made_of_the_clip(name):
    dynamic = wrapped(name)
    batch = clip(dynamic)
    heard = []
    dynamic.generate(
        **batch, max_new_tokens=2, draft=lambda states: heard.append(states) or torch.tensor([5])
    )
    (states,) = heard
    encoded, _ = dynamic.layer_outputs(batch)
    assert states.shape == encoded[-1][0].shape


def test_a_head_that_is_more_than_a_product_keeps_its_say(name):
    class Louder(torch.nn.Linear):
        def forward(self, states):
            return super().forward(states) + 1e3 * (torch.arange(40) == 7)  # always the token 7

    dynamic = wrapped(name)
    head = dynamic.model.get_output_embeddings()
    louder = Louder(head.in_features, head.out_features, bias=False)
    louder.weight = head.weight
    dynamic.model.set_output_embeddings(louder)
    _, out = both(dynamic, clip(dynamic), lambda states: [7] * NEW)
    assert counted(out) == (1, [NEW - 1])
    with pytest.raises(sounding.errors.UsageError, match="Louder"):
        dynamic.generate(**clip(dynamic), draft=2)


# --- the parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 20])
def test_the_product_with_the_vocabulary_is_a_product(rows):
    states, weight = torch.randn(rows, 16), torch.randn(50, 16)
    torch.testing.assert_close(project(states, weight), states @ weight.t())


def test_the_quick_processors_do_what_those_of_transformers_do():
    slow = transformers.LogitsProcessorList(
        [
            SuppressTokensLogitsProcessor([3, 5]),
            SuppressTokensAtBeginLogitsProcessor([7, 8], begin_index=4),
        ]
    )
    scores = torch.randn(2, 12)
    for length in (3, 4, 5):
        ids = torch.ones(2, length, dtype=torch.long)
        made = quick(slow, 12)
        assert torch.equal(made(ids, scores.clone()), slow(ids, scores.clone()))
        assert not any(type(one).__module__.startswith("transformers") for one in made)


def test_what_two_texts_have_in_common():
    assert common([], [1]) == 0
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([1, 2, 4], [1, 3, 4]) == 1


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"do_sample": True}, "do_sample"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"temperature": (0.0, 0.4)}, "temperature"),
        ({"temperature": 0.4}, "temperature"),
        ({"return_timestamps": True}, "return_timestamps"),
        ({"return_token_timestamps": True}, "return_token_timestamps"),
        ({"output_scores": True}, "output_scores"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"logprob_threshold": -1.0}, "logprob_threshold"),
        ({"use_cache": False}, "use_cache"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"decoder_budget": 2}, "decoder_budget"),
        ({"decoder_mask": torch.tensor([True, False, True, True])}, "decoder_budget"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_go_with_drafts_is_refused_before_anything_runs(options, said):
    dynamic = wrapped(WHISPER)
    ran = []
    dynamic.stack[0].register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(sounding.errors.UsageError, match=said):
        dynamic.generate(**clip(dynamic), draft=2, **options)
    if said not in ("decoder_budget", "temperature"):  # Whisper ignores its own temperature
        setattr(dynamic.generation_config, said, options[said])
        with pytest.raises(sounding.errors.UsageError, match=said):
            dynamic.generate(**clip(dynamic), draft=2)
    assert not ran


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (0, "'0'"),
        (LAYERS, f"1 to {LAYERS - 1}"),
        (LAYERS + 1, "layers"),
        (True, "bool"),
        ("some", "budget"),
        (torch.ones(LAYERS, dtype=torch.bool), f"all {LAYERS} layers"),
        (torch.ones(3, dtype=torch.bool), "mask"),
        (LayerDraft(2, []), "at least one"),
        (LayerDraft(2, [3, 40]), r"\[40\]"),
        (lambda states: [3, 40], "40"),
        (lambda states: [3, -1], "-1"),
        (lambda states: ["a"], "'a'"),
        (lambda states: [[3]], r"\[3\]"),
    ],
)
def test_what_is_no_draft_is_refused(draft, said):
    dynamic = wrapped(WHISPER)
    with pytest.raises(sounding.errors.UsageError, match=said):
        dynamic.generate(**clip(dynamic), draft=draft)


def test_several_inputs_long_ones_other_precisions_and_models_without_a_decoder_are_refused():
    dynamic = wrapped(WHISPER)
    with pytest.raises(sounding.errors.UsageError, match="got 3"):
        dynamic.generate(**inputs(dynamic.model), draft=2)
    with pytest.raises(sounding.errors.UsageError, match="at most"):
        dynamic.generate(torch.randn(1, 16, 121), draft=2)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(sounding.errors.UsageError, match="autocast"),
    ):
        dynamic.generate(**clip(dynamic), draft=2)
    with pytest.raises(sounding.errors.UsageError, match="float32"):
        dynamic.bfloat16().generate(**clip(dynamic), draft=2)
    ctc = sounding.wrap(tiny.make("parakeet-ctc"), "first")
    with pytest.raises(sounding.errors.UsageError, match="no decoder"):
        ctc.generate(**tiny.inputs(ctc.model), draft=2)
