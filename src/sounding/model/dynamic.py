"""The `DynamicModel`: a pretrained model whose encoder runs the layers that a policy keeps."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..budget import Budget
from ..errors import UsageError
from ..policies import Confidence, Policy
from ..policies.base import Context, MeanBudgets
from ..policies.confidence import confidence
from ..policies.plans import Fixed, Plan, check_mask
from .backbones import Backbone
from .call import Call, Tree, activate
from .checks import by_name, main_input, refuse_options, refuse_padding, valid_lengths
from .decoder import DecoderStack, find_decoder
from .derive import Override
from .executor import EncoderInCall, LayerStack
from .exits import ExitHeads
from .generate import generate
from .heads import head_of
from .hub import push
from .losses import head_loss
from .outputs import add_layers
from .padding import valid_frames
from .readout import head_logits, readout
from .saving import save
from .settings import NotPredicted, set_layerdrop
from .signature import Copied
from .skip import SkipPath
from .tree import groups_of
from .untrained import note_depth
from .updates import Updates, begin_changes

ANY_MEAN = Budget.mean(1)


class MaskLogits(NamedTuple):
    """What `DynamicModel.forward_masks` returns.

    Shape:
        logits: [masks, batch, ...].
        features: [batch, frames, width]: what a policy reads, the state after its first `after`
            layers.
        frame_mask: [batch, frames] bool, or None without padding.
    """

    logits: Tensor
    features: Tensor
    frame_mask: Tensor | None


class DynamicModel(Copied, nn.Module):
    """A `transformers` model whose encoder runs only the layers that a policy keeps.

    It is made by `wrap`, and holds the model itself, not a copy. Attributes that it lacks are those
    of the model (`config`, `device`, `main_input_name`, ...).

    Attributes:
        model: the wrapped model.
        policy: the `Policy` that chooses the layers of each input.
        mean_policy: the policy of mean budgets where `policy` does not serve them: `Confidence`,
        which stops an input once its answer is sure enough.
        skip: what passes a skipped layer, a `SkipPath`.
        exits: heads of their own for budgets below full depth, or None.
        decoder_policy: reads the encoder's output and chooses decoder layers for `generate`. None
            for the first k.
        updates: changes of the weights that act below full depth only, see `add_updates`; or None.
        has_decoder: whether the model writes its answer with a decoder.
        trained: whether the model has ever been trained below full depth; set by the first such
            step, and saved. Without it, a budget below full depth warns once.
        decoder_trained: the same of the decoder's layers; for you to set.
    """

    trained = False
    decoder_trained = False

    def __init__(
        self,
        model: Any,
        policy: Policy,
        backbone: Backbone,
        base: nn.Module,
        skip: SkipPath,
        exits: ExitHeads | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.policy = policy
        self.mean_policy: Policy = Confidence()
        self.backbone = backbone
        self.skip = skip
        self.exits = exits
        self.decoder_policy: Policy | None = None
        self.updates: Updates | None = None
        self.training = model.training
        for part in (policy, self.mean_policy, skip, exits):
            if part is not None:
                part.train(model.training)
        object.__setattr__(self, "base", base)  # a part of `model`: not registered twice
        owner = backbone.owner(base)
        self._plain_layers = [owner.layers]  # in a list: not registered as a submodule
        owner.layers = LayerStack(owner.layers)  # type: ignore[arg-type]
        owner.layers.training = self._plain_layers[0].training  # type: ignore[union-attr]
        decoder = find_decoder(model, backbone.decoder)
        object.__setattr__(self, "_decoder", decoder)
        if decoder is not None:
            self._plain_layers.append(decoder.layers)
            decoder.layers = DecoderStack(decoder.layers)
            decoder.layers.training = decoder.training
        self._handles = [*backbone.install(base), Override(base, EncoderInCall)]
        self._not_predicted = NotPredicted(getattr(model, "config", base.config))
        self._layerdrop = set_layerdrop(owner, 0.0)
        # asked in every call, and a walk over all modules
        self.has_decoder = any(name.endswith("decoder") for name, _ in model.named_modules())
        self.warned = False  # that it is untrained

    @property
    def stack(self) -> LayerStack:
        """The encoder's layers, under their own names."""
        return self.backbone.owner(self.base).layers  # type: ignore[return-value]

    @property
    def decoder_stack(self) -> DecoderStack | None:
        """The decoder's layers, under their own names; None without a decoder that drops layers."""
        decoder: Any = self.__dict__["_decoder"]
        return None if decoder is None else decoder.layers

    @property
    def decoder_norm(self) -> nn.Module | None:
        """What stands behind the last layer of the decoder."""
        decoder = self.__dict__["_decoder"]
        return getattr(decoder, "layer_norm", getattr(decoder, "norm", None))  # Whisper, Moonshine

    @property
    def num_layers(self) -> int:
        """L, the number of layers to choose from."""
        return len(self.stack)

    @property
    def several(self) -> bool:
        """Whether an input may have several classes, each a yes or no by itself."""
        kind = getattr(head_of(self.model).config, "problem_type", None)
        return bool(kind == "multi_label_classification")

    @property
    def mean_budgets(self) -> MeanBudgets:
        """The thresholds of mean budgets: [mean, threshold] by rising mean.

        They belong to the policy that serves mean budgets, and are empty until it is calibrated.
        """
        return self.policy_for(ANY_MEAN).mean_budgets

    @mean_budgets.setter
    def mean_budgets(self, calibrated: MeanBudgets) -> None:
        self.policy_for(ANY_MEAN).mean_budgets = calibrated

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up in the wrapped model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def policy_for(self, budget: Budget) -> Policy:
        """Return the policy that serves budgets of this kind.

        Raises:
            UsageError: none does.
        """
        for one in (self.policy, self.mean_policy):
            if not hasattr(one, "serves"):
                raise UsageError(f"a policy is a sounding.Policy, not a {type(one).__name__}")
            if one.serves(budget):
                return one
        raise UsageError(
            f"budget {str(budget)!r} is not allowed here: a time or a number of operations is a "
            "budget of an exported model; give a number of kept layers"
        )

    def forward(
        self, *args: Any, budget: Any = None, mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the model's own forward pass with k layers per input.

        Args:
            budget: how much may run, as `Budget.parse` takes it: kept layers as a number, a share
                as "50%" of them, a list with one entry per input, or None for full depth. "mean:3"
                runs fewer layers for easy inputs and more for hard ones, about 3 in the mean, once
                `mean_budgets` are calibrated.
            mask: the layers to run, in place of a budget.
                Shape: [layers] or [batch, layers], bool, at least one True per input.
            attention_mask: as the model takes it; padding is on the right. For Whisper, over mel
                frames. Shape: [batch, samples or frames].
            args, kwargs: the rest of what the model takes.

        Returns:
            The model's output with `executed_layers`, bool [batch, layers]: what really ran. With
            `labels`, the loss is that of the head that answers: of an exit below full depth.

        Raises:
            ValueError: a budget or a mask that is not allowed, padding on the left, an input
                shorter than a frame, or an option that needs every layer (`output_attentions`,
                `return_dict=False`).

        Warns:
            UntrainedWarning: once, below full depth of a model that was not trained for it.
        """
        kwargs = by_name(type(self).forward, args, kwargs)
        if kwargs.keys() & {"decoder_budget", "decoder_mask"}:
            raise UsageError("decoder_budget and decoder_mask are options of generate")
        refuse_options(self.model.config, kwargs)
        inputs = main_input(self.model.main_input_name, kwargs)
        call, full = self.begin(inputs, budget, mask, kwargs)
        refuse_padding(self, call, inputs)
        wanted = kwargs.get("output_hidden_states", self.model.config.output_hidden_states)
        weighted = getattr(self.model.config, "use_weighted_layer_sum", False)
        call.keep_hidden_states = bool(wanted or weighted)
        labels = None if self.exits is None or full else kwargs.pop("labels", None)
        with activate(call):
            out = self.model(**kwargs)
        add_layers(out, executed_layers=call.executed[-1] if call.executed else None)
        if self.exits is not None and call.state is not None:
            frame_mask = call.frame_mask(call.state.shape[1])
            ran = call.executed[-1]
            out["logits"] = self.exits.answer(call.state, frame_mask, ran, out["logits"])
            if labels is not None:
                config, pooled = head_of(self.model).config, self.exits.pooled
                out["loss"] = head_loss(out["logits"], labels, frame_mask, config, pooled=pooled)
        return out

    def generate(
        self,
        *args: Any,
        budget: Any = None,
        mask: Tensor | None = None,
        decoder_budget: Any = None,
        decoder_mask: Tensor | None = None,
        draft: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model's own `generate` with k encoder layers per input, and k of the decoder.

        With `return_dict_in_generate=True` the result has `executed_layers`, bool
        [batch, layers], or a list of these where the encoder ran more than once; and
        `executed_decoder_layers`, bool [batch, decoder layers]. Where inputs keep different
        decoder layers, it lacks the cache and `decoder_hidden_states`; otherwise these states are
        those of the layers that ran. Below full depth, and for a clip that is shorter than its
        window, Whisper writes no time stamps unless they are asked for.

        Args:
            budget, mask: as for a call.
            decoder_budget: kept layers of the decoder, for the whole generation of an input; as
                `budget`, but for a mean. `decoder_policy` chooses which, by default the first k.
            decoder_mask: the decoder's layers to run, in place of a budget.
                Shape: [decoder layers] or [batch, decoder layers], bool.
            draft: what writes ahead, for the whole decoder to read many tokens in one pass: k of
                its own layers (or a `drafts.LayerDraft`), or a function that makes tokens of the
                encoder's states, [1, frames, width]. For one input, greedy: the same tokens, and
                `passes` of the decoder, [1], with the tokens `accepted` in each, [1, passes].
            args, kwargs: the rest of what `generate` takes.

        Raises:
            ValueError: as for a call; for Whisper also clips of mixed lengths below 30 s, and
                budgets per input where its encoder runs more than once (above 30 s); an option
                that needs every layer of the decoder, or the same ones for all inputs, or does
                not go with drafts.
        """
        asked = {"decoder_budget": decoder_budget, "decoder_mask": decoder_mask, "draft": draft}
        return generate(self, *args, budget=budget, mask=mask, **asked, **kwargs)

    def layer_outputs(
        self, batch: dict[str, Tensor], k: int | None = None, budget: Any = None
    ) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Run the first `k` layers of the encoder (or those of a budget), and no head.

        Returns:
            What each of them puts out, [batch, frames, width], with the mask of its valid frames,
            bool [batch, frames] (None without padding); and `executed_layers`, bool
            [batch, layers].
        """
        k = self.num_layers if k is None else k
        mask = torch.arange(self.num_layers) < k if budget is None else None
        call, _ = self.begin(batch[self.base.main_input_name], budget, mask, batch, noted=False)
        call.keep_hidden_states = True
        with activate(call):
            out = self.base(**batch)
        states = out.hidden_states[1 : k + 1]
        return [(state, call.frame_mask(state.shape[1])) for state in states], call.executed[-1]

    def forward_masks(self, batch: dict[str, Tensor], masks: Tensor) -> MaskLogits:
        """Compute the logits under each of several masks; layers of shared prefixes run once.

        With 6 layers all 63 masks take 63 layer runs in place of 192.

        Args:
            batch: as the model takes it; what follows the encoder must return `logits`.
            masks: no two alike. Shape: [masks, layers] bool.

        Raises:
            ValueError: masks that are not allowed, or of which none runs what the policy reads
                after; a model that has no logits, or needs all hidden states for them.
        """
        tree_masks = torch.stack(
            [check_mask(mask, layers=self.num_layers, batch=1)[0] for mask in masks]
        )
        if len(torch.unique(tree_masks, dim=0)) < len(tree_masks):
            raise UsageError("the masks must differ from one another")
        logits: list[Any] = [None] * len(tree_masks)

        def leaf(index: int, state: Tensor) -> None:
            logits[index] = head_logits(self, batch, state, int(tree_masks[index].sum()))

        inputs = batch[self.model.main_input_name]
        call, _ = self.begin(inputs, None, None, batch)
        refuse_padding(self, call, inputs)
        self.trained |= self.training and torch.is_grad_enabled()
        taken = inspect.signature(type(self.base).forward).parameters
        given = {n: v for n, v in batch.items() if n in taken}
        features = None
        for members in groups_of(tree_masks, apart=self.updates is not None):
            call.tree = Tree(tree_masks, leaf, self.policy.after, members)
            whole = tree_masks[members[0]].all().expand(len(inputs))
            begin_changes(call, self.updates, whole, inputs.shape[self.backbone.time])
            with activate(call):
                self.base(**given)
            features = call.tree.features if features is None else features
        if features is None:
            raise UsageError("some mask must run the layers before the policy reads")
        return MaskLogits(torch.stack(logits), features, call.frame_mask(features.shape[1]))

    def frame_mask(self, batch: dict[str, Tensor], frames: int) -> Tensor | None:
        """Return which of the encoder's frames are no padding.

        Shape: -> [batch, frames] bool; None where all are valid.
        """
        call, _ = self.begin(batch[self.model.main_input_name], None, None, batch)
        return call.frame_mask(frames)

    def forward_plan(self, batch: dict[str, Tensor], plan: Plan) -> Any:
        """Run the model's own forward pass with a plan of yours, for training methods.

        Args:
            plan: see `policies.plans`. All inputs count as below full depth.
        """
        inputs = batch[self.model.main_input_name]
        call, _ = self.begin(inputs, None, None, batch)
        self.trained |= self.training and torch.is_grad_enabled()
        call.plan = lambda: plan
        begin_changes(
            call, self.updates, torch.zeros(len(inputs)).bool(), inputs.shape[self.backbone.time]
        )
        with activate(call):
            return self.model(**batch)

    def save_pretrained(self, directory: str | Path, *, companions: Sequence[Any] = ()) -> None:
        """Save the model (as `transformers` does) and the policies, all or nothing.

        The directory also loads with the plain `from_pretrained` of the model. Other files in it
        are kept.

        Args:
            companions: more to `save_pretrained` beside the model: a processor, a tokenizer.

        Raises:
            ValueError: a model or a policy that `load` could not build again.
        """
        save(self, Path(directory), companions)

    def push_to_hub(self, repo_id: str, *, companions: Sequence[Any] = (), **options: Any) -> Any:
        """Upload what `save_pretrained` saves, for `load(repo_id)` to load; see `hub.push`.

        Args:
            repo_id: ORGANIZATION/NAME; made if there is none.
            companions: as of `save_pretrained`.
            options: commit_message, private, token, revision, create_pr.

        Returns:
            The `CommitInfo` of `huggingface_hub`.

        Raises:
            ValueError: a model that cannot be saved, or not be pushed.
        """
        return push(partial(self.save_pretrained, companions=companions), repo_id, **options)

    def begin(
        self,
        inputs: Tensor,
        budget: Any,
        mask: Tensor | None,
        batch: dict[str, Any],
        *,
        noted: bool = True,
    ) -> tuple[Call, bool]:
        """Begin a call: parse the budget, plan it, and check the lengths of the inputs.

        Args:
            budget, mask: as `forward` takes them.
            batch: all arguments of the model.
            noted: whether a depth below full is to be noted in `trained`, or warned of.

        Returns:
            The call, and whether it keeps all layers of every input.
        """
        if mask is not None and budget is not None:
            raise UsageError("give a budget or a mask, not both")
        asked, layers, size = Budget.parse(budget), self.num_layers, inputs.shape[0]
        if mask is not None:
            fixed = check_mask(mask, layers=layers, batch=size)
            plan: Any = partial(Fixed, fixed)
            full, whole = bool(fixed.all()), fixed.all(1)
        else:
            read = None if self.has_decoder else readout(self, batch)
            context = Context(layers, size, read, partial(confidence, several=self.several))
            plan = partial(self.policy_for(asked).plan, asked, context)
            plan()  # what is wrong with a budget is said before anything runs
            full = asked.keeps_all(layers=layers)
            kept = asked.kept_layers(layers=layers, batch=size) if asked.is_exact else [0] * size
            whole = torch.tensor(kept) == layers
        positions = inputs.shape[self.backbone.time]
        lengths = valid_lengths(batch.get("attention_mask"), size, positions)
        given = torch.full((size,), positions) if lengths is None else lengths
        valid_frames(self.backbone, self.base, given)
        if noted:
            note_depth(self, full=full)
        call = Call(self.stack, self.base, self.backbone, plan, self.skip, lengths=lengths)
        begin_changes(call, self.updates, whole, positions)
        return call, full
