"""A dynamic model among the tools of others: copies, pickles, Trainer, DDP, PEFT, quantization."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers as t
from tiny import MODELS, inputs, make
from torch.utils import _pytree

import sounding
from sounding.model.derive import why_unpicklable
from sounding.policies import GateSelector

W2V = (t.Wav2Vec2ForSequenceClassification, t.Wav2Vec2Config, tiny.POST)


def answer(model, batch, **choice):
    with torch.no_grad():
        out = model(**batch, **choice)
    return out.logits if "logits" in out else out.last_hidden_state


def zero(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


@pytest.fixture(params=MODELS)
def wrapped(request):
    """A model of each family with a mixed, padded batch where it takes one."""
    model = make(request.param)
    batch = inputs(model)
    dynamic = sounding.wrap(model)
    return dynamic, batch, torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]]).bool()


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # a file of our own


# --- copies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled, saved])
def test_a_copy_answers_as_the_original_and_with_weights_of_its_own(wrapped, make_copy):
    dynamic, batch, mask = wrapped
    if make_copy is not copy.deepcopy and why_unpicklable(dynamic):
        with pytest.raises(TypeError, match="save_pretrained"):
            make_copy(dynamic)
        with pytest.raises(RuntimeError):  # nor can the plain model be pickled
            make_copy(sounding.unwrap(dynamic))
        return
    twin = make_copy(dynamic)
    expected = answer(dynamic, batch, mask=mask)
    assert torch.equal(answer(twin, batch, mask=mask), expected)
    zero(twin)
    assert torch.equal(answer(dynamic, batch, mask=mask), expected)
    assert not torch.equal(answer(twin, batch, mask=mask), expected)


def test_most_families_can_be_pickled():
    refused = {n.split("-")[0] for n in MODELS if why_unpicklable(sounding.wrap(make(n)))}
    assert refused == {"wav2vec2", "hubert", "wavlm", "unispeech"}  # weight norm


def test_a_hook_that_pickle_does_not_take_is_named():
    dynamic = sounding.wrap(make("ast"))
    dynamic.stack.layers[1].register_forward_hook(lambda *args: None)
    with pytest.raises(TypeError, match=r"layers\.1 has a hook.*save_pretrained"):
        pickled(dynamic)
    copy.deepcopy(dynamic)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, pickled])
def test_a_copy_of_the_inner_model_computes_with_its_own_weights(wrapped, make_copy):
    dynamic, batch, _ = wrapped
    if make_copy is pickled and why_unpicklable(dynamic.model):
        pytest.skip(why_unpicklable(dynamic.model))
    twin = make_copy(dynamic.model)
    expected = answer(dynamic.model, batch)
    zero(dynamic)
    assert torch.equal(answer(twin, batch), expected)
    zero(twin)
    assert not torch.equal(answer(twin, batch), expected)


def test_a_copy_is_unwrapped_to_a_plain_model(wrapped):
    dynamic, batch, mask = wrapped
    expected = answer(dynamic, batch)
    plain = sounding.unwrap(copy.deepcopy(dynamic))
    classes = {type(module) for module in plain.modules()}
    assert not any(hasattr(cls, "_sounding_original") for cls in classes)
    assert torch.equal(answer(plain, batch), expected)
    answer(dynamic, batch, mask=mask)  # the original goes on


def test_no_module_of_a_wrapped_model_has_a_forward_of_its_own(wrapped):
    dynamic, _, _ = wrapped
    assert not [name for name, module in dynamic.named_modules() if "forward" in vars(module)]


def test_a_wrapped_module_is_still_what_it_was_for_others(wrapped):
    dynamic, _, _ = wrapped
    for module in dynamic.model.modules():
        original = getattr(type(module), "_sounding_original", None)
        if original is not None:
            assert isinstance(module, original)
            assert str(type(module)) == str(original)
            assert inspect.signature(module.forward) == inspect.signature(
                original.forward.__get__(module)
            )


def test_an_average_of_models_follows_the_training():
    dynamic = sounding.wrap(make("wav2vec2-post"))
    average = torch.optim.swa_utils.AveragedModel(dynamic, use_buffers=True)
    average.update_parameters(dynamic)
    batch = inputs(dynamic.model)
    before = answer(average, batch, budget=2)
    zero(dynamic)
    assert torch.equal(answer(average, batch, budget=2), before)
    average.update_parameters(dynamic)
    assert not torch.equal(answer(average, batch, budget=2), before)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_selector_is_pickled_after_a_training_too(scope):
    dynamic = sounding.wrap(make("ast"), GateSelector(32, 4, scope=scope))
    assert isinstance(pickled(dynamic).policy, GateSelector)
    dynamic = sounding.wrap(make("ast")).train()
    dynamic(**inputs(dynamic.model), budget=2)
    assert int(pickled(dynamic.policy).seen) == 1


def test_a_spawned_process_answers_as_this_one():
    dynamic = sounding.wrap(make("whisper-classification"))
    batch = inputs(dynamic.model)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        theirs = pool.submit(answer, dynamic, batch, budget=2).result()
    assert torch.allclose(theirs, answer(dynamic, batch, budget=2), atol=1e-5)


# --- outputs --------------------------------------------------------------------------------


def test_torch_finds_every_tensor_of_an_output(wrapped):
    dynamic, batch, mask = wrapped
    with torch.no_grad():
        out = dynamic(**batch, mask=mask)
    again = _pytree.tree_map(lambda x: x, out)
    assert list(again) == list(out)
    assert torch.equal(again.executed_layers, mask)
    twin = pickled(out)
    assert list(twin) == list(out)
    assert torch.equal(twin.executed_layers, mask)
    assert isinstance(out, type(dynamic.model(**batch)))


@pytest.mark.parametrize("name", ["whisper-generation", "moonshine-generation"])
def test_torch_finds_every_tensor_of_a_generation(name):
    dynamic = sounding.wrap(make(name), "first")
    batch = {k: v for k, v in inputs(dynamic.model).items() if k != "decoder_input_ids"}
    out = dynamic.generate(
        **batch, budget=2, decoder_budget=1, max_new_tokens=3, return_dict_in_generate=True,
        use_cache=False,
    )  # fmt: skip
    again = _pytree.tree_map(lambda x: x, out)
    assert list(again) == list(out)
    assert again.executed_layers.sum(1).tolist() == [2, 2, 2]
    assert again.executed_decoder_layers.sum(1).tolist() == [1, 1, 1]


def test_data_parallel_is_refused():
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        sounding.wrap(make("ast"))._replicate_for_data_parallel()


DDP = """
import sys; sys.path.insert(0, {tests!r})
import tiny, torch, sounding
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
net = DistributedDataParallel(
    sounding.wrap(tiny.make("wav2vec2-post"), "first", exits=True).train(),
    find_unused_parameters=True,
)
for step in range(2):
    out = net(input_values=torch.randn(2, 4000), labels=torch.tensor([0, 1]), budget=2)
    out.loss.backward()
grad = net.module.exits.heads[1][2].weight.grad
both = [torch.zeros_like(grad) for _ in range(2)]
dist.all_gather(both, grad)
assert grad.abs().max() > 0 and torch.equal(*both)
open({folder!r} + "/right" + str(dist.get_rank()), "w").close()
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_of_distributed_data_parallel_take_steps_below_full_depth(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(tests=str(Path(tiny.__file__).parent), folder=str(tmp_path)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("right*")) == ["right0", "right1"], (
        done.stderr
    )


# --- transformers.Trainer -------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_forward_says_what_the_model_takes(name):
    plain = make(name)
    wanted = list(inspect.signature(plain.forward).parameters)
    dynamic = sounding.wrap(plain)
    found = list(inspect.signature(dynamic.forward).parameters)
    assert [n for n in found if n not in ("budget", "mask")] == wanted
    assert {"budget", "mask"} <= set(found)
    of_class = list(inspect.signature(type(dynamic).forward).parameters)
    assert of_class == ["self", *found]


def test_trainer_trains_evaluates_and_predicts_with_a_dynamic_model(tmp_path):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    rng = np.random.default_rng(0)
    rows = [
        {"input_values": rng.normal(size=4000).astype("float32").tolist(), "labels": i % 5}
        for i in range(8)
    ]
    data = datasets.Dataset.from_list(rows).with_format("torch")
    dynamic = sounding.wrap(make("wav2vec2-post"), "first", exits=True)
    seen = []

    def collate(clips):
        seen.append(len(clips))
        return {**t.default_data_collator(clips), "budget": 2}

    def metrics(predicted):
        return {"right": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}

    trainer = t.Trainer(
        model=dynamic,
        args=t.TrainingArguments(
            str(tmp_path), max_steps=6, per_device_train_batch_size=8, learning_rate=1e-2,
            report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate,
        compute_metrics=metrics,
    )  # fmt: skip
    before = dynamic.exits.heads[1][2].weight.detach().clone()
    untouched = dynamic.model.classifier.weight.detach().clone()
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert last["eval_loss"] < first["eval_loss"]
    assert last["eval_right"] >= first["eval_right"]
    assert not torch.equal(dynamic.exits.heads[1][2].weight, before)
    assert torch.equal(dynamic.model.classifier.weight, untouched)  # it answers at full depth only


def test_what_trainer_ignores_is_not_saved_and_goes_with_unwrap(tmp_path):
    model = make("ast")
    dynamic = sounding.wrap(model)
    assert "executed_layers" in model.config.keys_to_ignore_at_inference
    dynamic.save_pretrained(tmp_path)
    assert "executed_layers" not in (tmp_path / "config.json").read_text()
    assert "executed_layers" in model.config.keys_to_ignore_at_inference
    sounding.unwrap(dynamic)
    assert "keys_to_ignore_at_inference" not in vars(model.config)


# --- models within models -------------------------------------------------------------------


class Mine(t.Wav2Vec2ForSequenceClassification):
    """A class of somebody's own."""


def test_a_class_of_ones_own_has_exits():
    model = Mine(t.Wav2Vec2Config(**tiny.POST)).eval()
    dynamic = sounding.wrap(model, exits=True)
    out = dynamic(**inputs(model), budget=2)
    assert out.executed_layers.sum(1).tolist() == [2, 2, 2]
    assert out.logits.shape == (3, 5)


@pytest.mark.parametrize("name", ["wav2vec2-post", "wav2vec2-pre"])
def test_a_model_of_peft_has_exits_and_trains_its_adapters(name):
    peft = pytest.importorskip("peft")
    plain = make(name)
    batch = inputs(plain)
    expected = answer(plain, batch)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    dynamic = sounding.wrap(peft.get_peft_model(plain, settings).eval(), exits=True)
    assert "input_values" in inspect.signature(dynamic.forward).parameters
    assert torch.equal(answer(dynamic, batch), expected)
    labels = torch.tensor([1, 2, 3]) if name == "wav2vec2-post" else torch.ones(3, 2).long()
    dynamic.train()
    out = dynamic(**batch, labels=labels, budget=2)
    assert out.executed_layers.sum(1).tolist() == [2, 2, 2]
    out.loss.backward()
    trained = {n for n, p in dynamic.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_B" in n for n in trained)
    assert any(n.startswith("exits.heads.1") for n in trained)


# --- quantization ---------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["input", "gates"])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_quantized_by_torch_runs_at_every_budget(selector, inplace):
    chooser = GateSelector(32, 4) if selector == "gates" else selector
    dynamic = sounding.wrap(make("wav2vec2-post"), chooser, exits=True)
    batch = inputs(dynamic.model)
    expected = answer(dynamic, batch, budget=2)
    small = torch.ao.quantization.quantize_dynamic(
        dynamic, {torch.nn.Linear}, dtype=torch.qint8, inplace=inplace
    )
    for k in (1, 2, 4):
        assert small(**batch, budget=k).executed_layers.sum(1).tolist() == [k, k, k]
    got = answer(small, batch, budget=2)
    assert (got - expected).abs().max() < 0.3 * expected.abs().max()
    if not inplace:
        assert torch.equal(answer(dynamic, batch, budget=2), expected)
