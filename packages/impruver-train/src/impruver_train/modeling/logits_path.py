"""Whether logits may be computed for target positions alone: tried on a tiny batch, not read from a model's source.

Most causal models of transformers have the same loss and gradients either way. Some do not: those with a loss of all
logits besides, logits scaled position by position, labels changed in `forward`. So the loss in training and evaluation,
the gradients of what is trained and those of the embedded rows are compared with transformers' own, before weights are
loaded on a small model of the same class and switches in fp32, then on the loaded model.

    row 0   t t t t t     t: a target, .: -100, _: padding. The first label is never predicted, the last predicts none
    row 1   . t . t _
    row 2   . . . . .     without targets: its gradient is 0, unless something else looks at its logits
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.labels import IGNORE_INDEX
from impruver_core.modeling.loading import build_new_model

from impruver_train.modeling import chunked_loss
from impruver_train.modeling.chunked_loss import LogitsPath, get_base, get_plain_head

if TYPE_CHECKING:
    import torch
    from impruver_core.recipe.sections import ModelSection
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

ROWS = ("ttttt", ".t.t_", ".....")
CHUNK = 4  # positions, so that the tiny batch has several chunks
SCALE = 1024.0  # of the loss: fp16 holds small gradients
SAMPLES = 1 << 14  # values of each gradient that are compared
FP32, ROUNDED = (1e-5, 1e-4), (1e-2, 0.25)  # how far loss and gradients may be off; 16 bits round in each layer
NOISE = 0.1  # of the largest gradient, times that: how far one may be off that is but rounding (a key's bias)
WIDTH, VOCABULARY = 16, 64  # of a small model: hidden values for each attention head, tokens
MOST = 200_000_000  # weights of a small model


class Step(NamedTuple):
    """What a step on the tiny batch gives: losses of training and evaluation, gradients of inputs and weights."""

    losses: Tensor
    rows: Tensor  # of the embedded rows, (batch, values)
    weights: dict[str, Tensor]


def find_logits_path(
    model: PreTrainedModel, best: LogitsPath = LogitsPath.CHUNKED, autocast: torch.dtype | None = None
) -> LogitsPath | None:
    """The greatest path up to `best` whose loss and gradients on a tiny batch are those of all logits.

    Nothing is changed by it: weights, gradients, buffers, random state. None where all logits themselves give no finite
    loss. `autocast`: the dtype that training computes in where weights are held in another.
    """
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    plain = run_step(model, LogitsPath.ALL, autocast)
    if plain is None or not plain.losses.isfinite().all():
        return None
    if getattr(get_base(model), "loss_function", None) is not ForCausalLMLoss:
        return LogitsPath.ALL
    if get_plain_head(model) is None:
        best = min(best, LogitsPath.TARGETS)
    exact = autocast is None and all(weight.dtype == torch.float32 for weight in model.parameters())
    for path in (LogitsPath.CHUNKED, LogitsPath.TARGETS):
        if path <= best and is_same(run_step(model, path, autocast), plain, *(FP32 if exact else ROUNDED)):
            return path
    return LogitsPath.ALL


def is_same(step: Step | None, plain: Step, of_loss: float, of_gradient: float) -> bool:
    """Whether a step has the losses and gradients of the `plain` one, but for these parts of them."""
    if step is None or step.weights.keys() != plain.weights.keys() or step.rows.shape != plain.rows.shape:
        return False
    floor = NOISE * max((gradient.norm() for gradient in plain.weights.values()), default=0.0)
    return bool(
        ((step.losses - plain.losses).abs() <= of_loss * plain.losses.abs()).all()
        and ((step.rows - plain.rows).norm(dim=1) <= of_gradient * plain.rows.norm(dim=1)).all()
        and all(
            (step.weights[name] - gradient).norm() <= of_gradient * max(gradient.norm(), floor)
            for name, gradient in plain.weights.items()
        )
    )


def run_step(model: PreTrainedModel, path: LogitsPath, autocast: torch.dtype | None) -> Step | None:
    """Trains and evaluates on the tiny batch by `path`; None where that fails, or all logits are computed after all."""
    import torch

    base, head, device = get_base(model), get_plain_head(model), next(model.parameters()).device
    batch = make_batch(base.config.get_text_config().vocab_size, device)
    batch = chunked_loss.add_logits_to_keep(batch) if path else batch
    takes = inspect.signature(base.forward).parameters.values()  # as Trainer finds out
    accepts_count = getattr(base, "accepts_loss_kwargs", any(each.kind is each.VAR_KEYWORD for each in takes))
    count = {"num_items_in_batch": torch.tensor(29, device=device)} if accepts_count else {}
    losses: list[Tensor] = []
    rows: list[Tensor] = []
    weights: dict[str, Tensor] = {}

    def watch(_module: Any, _inputs: Any, embedded: Tensor) -> None:
        if torch.is_grad_enabled():
            embedded.requires_grad_().register_hook(lambda gradient: rows.append(gradient.float().cpu()))

    def record(name: str, weight: Tensor) -> None:
        """Samples a gradient and drops it: no more than one is held."""
        sample = weight.grad.flatten()[:: 1 + weight.grad.numel() // SAMPLES].float().cpu()
        weights[name] = weights.get(name, 0) + sample
        weight.grad = None

    hooks = [model.get_input_embeddings().register_forward_hook(watch)]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            hooks.append(weight.register_post_accumulate_grad_hook(partial(record, name)))
    try:
        if path:
            chunked_loss.enable_chunked_loss(model, path, CHUNK)
        with preserve_state(model, device):
            for training in (True, False):
                torch.manual_seed(0)  # the same dropout and routing noise each time
                model.train(training)
                casting = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None)
                with torch.set_grad_enabled(training), casting:
                    outputs = model(**batch, **(count if training else {}))
                if path and not chunked_loss.is_sparse(outputs.logits):
                    return None
                losses.append(outputs.loss.detach().float().cpu())
                if training:
                    (outputs.loss * SCALE).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a forward says to logits of another shape
        return None
    finally:
        for hook in hooks:
            hook.remove()
        for weight in model.parameters():
            weight.grad = None
        if path:
            vars(base).pop("_loss_function", None)
            if head is not None:
                vars(head).pop("forward", None)
    return Step(torch.stack(losses), sum(rows).flatten(1) if rows else torch.zeros(0, 0), weights)


@contextmanager
def preserve_state(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Leaves modes, buffers, cache and random states as they were, with an adapter's dropout before the head off."""
    import torch  # that dropout would draw other numbers for other positions

    config, head = get_base(model).config.get_text_config(), get_base(model).get_output_embeddings()
    modes, caches = [(module, module.training) for module in model.modules()], getattr(config, "use_cache", False)
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    dropouts = [(module, module.p) for module in (head.modules() if head else ()) if type(module) is torch.nn.Dropout]
    devices = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        try:
            if caches:
                config.use_cache = False
            for module, _ in dropouts:
                module.p = 0.0
            yield
        finally:
            if caches:
                config.use_cache = caches
            for module, training in modes:
                module.training = training
            for module, probability in dropouts:
                module.p = probability
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer.copy_(before)


def make_batch(vocabulary: int, device: torch.device) -> dict[str, Tensor]:
    """The rows of the module's picture: random ids, and labels that have nothing to do with them."""
    import torch

    kinds = torch.tensor([list(map(ord, row)) for row in ROWS])
    random = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(min(3, vocabulary - 1), min(50, vocabulary), (2, *kinds.shape), generator=random)
    labels = labels.where(kinds == ord("t"), IGNORE_INDEX)
    batch = {"input_ids": ids, "attention_mask": (kinds != ord("_")).long(), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def predict_logits_path(section: ModelSection, config: PretrainedConfig, recipe_dir: Path | None) -> LogitsPath | None:
    """What `find_logits_path` finds of a small model of that class with random weights; None where none can be made."""
    import torch

    if section.attn_implementation not in ("eager", "sdpa"):
        section = replace(section, attn_implementation=None)  # the others want a GPU
    with torch.random.fork_rng([]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        try:
            small = type(config).from_dict(shrink_config(config, config.to_dict()))
            with torch.device("meta"):
                count = build_new_model(section, deepcopy(small), torch.float32, recipe_dir).num_parameters()
            if count > MOST:
                return None
            model = build_new_model(section, small, torch.float32, recipe_dir)
            model.get_output_embeddings().weight.data.normal_(std=0.1)  # else all logits are nearly 0
        except Exception:  # whatever a configuration says to other sizes than its own
            return None
    return find_logits_path(model)


def shrink_config(config: PretrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The `values` of `config` for two layers, narrow and of few tokens; all switches stay."""
    own = {old: name for name, old in (getattr(config, "attribute_map", None) or {}).items()}
    usual = {own.get(key, key): value for key, value in values.items()}
    layers, heads = usual.get("num_hidden_layers"), usual.get("num_attention_heads")
    narrow = {"num_hidden_layers": 2, "num_kv_shared_layers": 0}
    if isinstance(heads, int):
        narrow["hidden_size"] = heads * (WIDTH if heads <= 64 else WIDTH // 2)
    small = {}
    for key, value in values.items():
        name = own.get(key, key)
        if isinstance(value, dict) and hasattr(getattr(config, key, None), "to_dict"):
            small[key] = shrink_config(getattr(config, key), value)
        elif isinstance(value, dict) and value and all(str(layer).isdigit() for layer in value):
            small[key] = {}
        elif isinstance(value, list) and layers and len(value) == layers:  # a value for each layer
            small[key] = [value[0], value[-1]]
        elif type(value) is int and name in narrow:
            small[key] = narrow[name]
        elif type(value) is int and ("intermediate_size" in name or name in ("n_inner", "ffn_dim")):
            small[key] = min(value, 2 * WIDTH)
        elif type(value) is int and ("vocab_size" in name or name.endswith(("_token_id", "_token_index"))):
            small[key] = min(value, VOCABULARY - (not name.endswith("size")))
    return values | small
