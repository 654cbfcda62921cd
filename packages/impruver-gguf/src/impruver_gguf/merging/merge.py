"""Merge an adapter into the weights it was trained on, one tensor at a time, in float32.

What would not come out exactly, does not fit its base, or is not whole is refused by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from impruver_core.errors import ImpruverError

from impruver_gguf.merging.expert_lora import find_experts, merge_expert_lora
from impruver_gguf.merging.lora_math import add_bias_update, add_lora, apply_dora_magnitude, replace_rows
from impruver_gguf.weights.checkpoint import (
    PEFT_PREFIX,
    PeftAdapter,
    check_mergeable,
    get_rank,
    get_scaling,
    is_module_named,
)
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, as_float32, has_same_values
from impruver_gguf.weights.text_model import get_text_name

UNLOADED = ("mtp.", "model.mtp.")  # what transformers has no modules for, although files hold it
PARTS = {  # how names in an adapter's file end
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "rows",
}
OTHER_NAMES = {"lm_head": "embed_out", "embed_out": "lm_head"}  # GPT-NeoX's output in transformers 5, in files and 4
PREDICTION = "eh_proj.weight"  # a tensor of layers that predict further tokens alone
MODULE_FILTERS = ("layers_to_transform", "layers_pattern", "exclude_modules")  # these leave out some of target_modules


class TiedModules(NamedTuple):
    """The modules of input and output embeddings (`embed_tokens`, `lm_head`), where they share one matrix."""

    embedding: str
    output: str


@dataclass
class ModuleDelta:
    """What an adapter does to one module: tensors to be merged by their role, or whole tensors that replace its own."""

    parts: dict[str, LazyTensor] = field(default_factory=dict)  # "a", "b", "magnitude", …; "rows" of trained tokens
    replaced: dict[str, LazyTensor] = field(default_factory=dict)  # "weight", "bias"

    @property
    def has_lora(self) -> bool:
        """Whether any of the parts belongs to LoRA."""
        return bool(self.parts.keys() - {"rows"})


def merge_adapter(
    base: Tensors, adapter: PeftAdapter, *, conv1d: tuple[str, ...] | None = None, tied: TiedModules | None = None
) -> dict[str, LazyTensor]:
    """Merge `adapter` into the tensors of `base`, in their order; nothing is computed before it is read.

    Args:
        conv1d: How the names of modules with transposed weights end; None: the adapter's fan_in_fan_out decides.
        tied: The modules of input and output embeddings, where the configuration ties them.
    """
    check_mergeable(adapter)
    deltas = _collect_deltas(adapter)
    expert_deltas = {module: deltas.pop(module) for module in [*deltas] if find_experts(module)}
    tied = _find_tied_modules(tied, deltas) if tied else None
    # Module as the adapter calls it → as the base's file does.
    known = {get_text_name(name): name for name in base}
    names = {module: _find_base_name(module, known) for module in [*deltas, *(tied or ())]}
    tensors = {name: as_float32(tensor) if len(tensor.shape) == 1 else tensor for name, tensor in base.items()}
    if tied and deltas.keys() & set(tied) and _drop_tied_output(tensors, tied, names):
        _untie_if_needed(tensors, deltas, tied, names, adapter.config)
    for module, delta in deltas.items():
        transposed = bool(adapter.config.get("fan_in_fan_out")) if conv1d is None else module.endswith(conv1d)
        _apply_delta(tensors, names[module], module, delta, adapter, transposed)
    for module, delta in expert_deltas.items():
        experts = find_experts(module)
        merge_expert_lora(tensors, _find_base_experts(experts, known), experts, delta.parts, adapter.config)
    _check_complete(base, adapter, {names[module] for module, delta in deltas.items() if delta.has_lora})
    return tensors


def _find_tied_modules(tied: TiedModules, modules: Iterable[str]) -> TiedModules:
    """The same two modules under the names that an adapter has for them, if it has."""
    by_text_name = {get_text_name(module): module for module in modules}
    return TiedModules(*(by_text_name.get(module, module) for module in tied))


def _find_base_name(module: str, known: Mapping[str, str]) -> str:
    """What the base's file calls an adapter's module: with `language_model` elsewhere, without `model`, by an old name.

    `known` are the file's tensors by the names that a model of text alone has for them.
    """
    text_name = get_text_name(module)
    for name in (text_name, text_name.partition(".")[2], OTHER_NAMES.get(text_name)):
        if f"{name}.weight" in known:
            return known[f"{name}.weight"].removesuffix(".weight")
    return text_name


def _find_base_experts(module: str, known: Mapping[str, str]) -> str:
    """What the base's file calls the module of a layer's experts, likewise."""
    text_name = get_text_name(module)
    for name in (text_name, text_name.partition(".")[2]):
        key = next((key for key in known if key.startswith(f"{name}.")), None)
        if key:
            return known[key].removesuffix(key.removeprefix(name))
    return text_name


def _drop_tied_output(tensors: dict[str, LazyTensor], tied: TiedModules, names: Mapping[str, str]) -> bool:
    """Say whether a file's weights are tied, as transformers judges; an output that is a copy is taken out."""
    embedding, output = (f"{names[module]}.weight" for module in tied)
    if output in tensors and not has_same_values(tensors[embedding], tensors[output]):
        return False
    tensors.pop(output, None)
    return True


def _untie_if_needed(
    tensors: dict[str, LazyTensor],
    deltas: dict[str, ModuleDelta],
    tied: TiedModules,
    names: Mapping[str, str],
    config: dict[str, Any],
) -> None:
    """Give the output a matrix of its own where one end was trained by itself, else take its delta, a copy, out.

    PEFT computes LoRA on the input beside the shared matrix, so that the output stays as it was; rows of tokens are
    trained in both.
    """
    embedding, output = tied
    below, above = deltas.get(embedding, ModuleDelta()), deltas.get(output, ModuleDelta())
    saved = [str(name) for name in config.get("modules_to_save") or []]
    own_output = any(is_module_named(output, name) for name in saved)
    ends = [delta.replaced["weight"] for delta in (below, above) if "weight" in delta.replaced]
    saved_as_one = len(ends) == 2 and has_same_values(*ends)  # PEFT's ensure_weight_tying saves both, alike
    own_embedding = any(is_module_named(embedding, name) for name in saved) and not saved_as_one
    same_scaling = get_scaling(config, embedding) == get_scaling(config, output)
    same_update = same_scaling and _is_same_update(below.parts, above.parts)
    trained_output = (above.has_lora and not same_update) or ("rows" in above.parts and "rows" not in below.parts)
    trained_embedding = below.has_lora and not above.has_lora and not config.get("ensure_weight_tying")
    if not own_output and not trained_output:
        deltas.pop(output, None)
    if trained_output or ((own_embedding or trained_embedding) and not own_output):
        tensors.setdefault(f"{names[output]}.weight", tensors[f"{names[embedding]}.weight"])


def _is_same_update(below: Tensors, above: Tensors) -> bool:
    """Whether the output's LoRA is the embedding's, transposed: what PEFT's ensure_weight_tying trains."""
    if above.keys() != {"a", "b"} or below.keys() != {"embedding_a", "embedding_b"}:
        return False
    pairs = ((below["embedding_a"], above["b"]), (below["embedding_b"], above["a"]))
    return all(np.array_equal(one.read_float32().T, other.read_float32()) for one, other in pairs)


def _collect_deltas(adapter: PeftAdapter) -> dict[str, ModuleDelta]:
    """The adapter's tensors by the module that they change."""
    deltas: dict[str, ModuleDelta] = {}
    for name, tensor in adapter.tensors.items():
        path = name.removeprefix(PEFT_PREFIX)
        suffix = next((suffix for suffix in PARTS if path.endswith(suffix)), None)
        if suffix:
            deltas.setdefault(path.removesuffix(suffix), ModuleDelta()).parts[PARTS[suffix]] = tensor
            continue
        module, _, kind = path.replace(".base_layer.", ".").rpartition(".")
        if not module or kind not in ("weight", "bias") or ".lora_" in path:
            raise ImpruverError(f"{adapter.folder}: {name} is nothing that can be merged exactly; merge it with peft")
        deltas.setdefault(module, ModuleDelta()).replaced[kind] = tensor
    return deltas


def _apply_delta(
    tensors: dict[str, LazyTensor], name: str, module: str, delta: ModuleDelta, adapter: PeftAdapter, transposed: bool
) -> None:
    """Change the tensors of one module, which the adapter calls `module` and the base `name`."""
    for kind, tensor in delta.replaced.items():
        before = tensors.get(f"{name}.{kind}")
        if before is not None and tensor.shape[1:] != before.shape[1:]:  # rows may be more, of a grown vocabulary
            raise ImpruverError(
                f"{module}: the adapter's {list(tensor.shape)} does not fit the base's {list(before.shape)}: it was "
                "trained on another base"
            )
        tensors[f"{name}.{kind}"] = tensor
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        raise ImpruverError(f"the adapter changes {module}, which its base does not have: it is of another base")
    if "rows" in delta.parts:
        tensors[f"{name}.weight"] = _replace_token_rows(weight, delta.parts["rows"], module, adapter.config)
    if delta.has_lora:
        _merge_lora(tensors, name, module, delta.parts, adapter, transposed)


def _replace_token_rows(weight: LazyTensor, rows: LazyTensor, module: str, config: Mapping[str, Any]) -> LazyTensor:
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        indices = next((numbers for name, numbers in indices.items() if is_module_named(module, name)), [])
    if len(indices) != rows.shape[0] or rows.shape[1:] != weight.shape[1:]:
        raise ImpruverError(
            f"{module}: the adapter has rows {list(rows.shape)} for {len(indices)} tokens, its base "
            f"{list(weight.shape)}"
        )
    unknown = sorted(set(range(weight.shape[0], max(indices, default=0))) - set(indices))
    if unknown:
        raise ImpruverError(f"{module}: token {unknown[0]} has a row neither in the base nor in the adapter")
    return replace_rows(weight, rows, indices)


def _merge_lora(
    tensors: dict[str, LazyTensor], name: str, module: str, parts: Tensors, adapter: PeftAdapter, conv1d: bool
) -> None:
    """Put LoRA's or DoRA's update into the module's weight, and into its bias if that was trained."""
    weight, is_embedding = tensors[f"{name}.weight"], "embedding_a" in parts or "embedding_b" in parts
    transposed = conv1d or is_embedding
    a, b = (parts.get(f"embedding_{part}" if is_embedding else part) for part in "ab")
    if a is None or b is None:
        raise ImpruverError(f"{module}: the adapter has only one of lora_A and lora_B")
    rank = get_rank(adapter.config, module)
    if a.shape[0] != rank:
        raise ImpruverError(
            f"{adapter.folder}: {module}.lora_A.weight has rank {a.shape[0]}, adapter_config.json says {rank} (r or "
            "rank_pattern): the two are of different trainings; copy both files from one"
        )
    shape = (b.shape[0], a.shape[1])
    if a.shape[0] != b.shape[1] or (shape[::-1] if transposed else shape) != weight.shape:
        raise ImpruverError(
            f"{module}: the adapter's {list(b.shape)} x {list(a.shape)} does not fit the base's {list(weight.shape)}: "
            "it was trained on another base"
        )
    scaling = get_scaling(adapter.config, module)
    weight = add_lora(weight, a, b, scaling, transposed)
    if adapter.config.get("use_dora") and "magnitude" not in parts:
        raise ImpruverError(f"{module}: use_dora is set, but the adapter has no lora_magnitude_vector; copy it whole")
    if "magnitude" in parts:
        weight = apply_dora_magnitude(weight, parts["magnitude"], transposed)
    tensors[f"{name}.weight"] = weight
    if "bias" in parts:
        if f"{name}.bias" not in tensors:
            raise ImpruverError(f"{module}: the adapter has a bias, its base has none: it is of another base")
        tensors[f"{name}.bias"] = add_bias_update(tensors[f"{name}.bias"], parts["bias"], scaling)


def _check_complete(base: Tensors, adapter: PeftAdapter, adapted: set[str]) -> None:
    """Every module that target_modules names by the end of its name has its part in the adapter.

    Not so in layers that predict further tokens alone, which transformers leaves out in training.
    """
    config = adapter.config
    if not adapter.tensors:
        raise ImpruverError(f"{adapter.folder}: the adapter holds no tensors; train it again, or copy it whole")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(name) for name in MODULE_FILTERS):
        return
    saved = [str(name) for name in config.get("modules_to_save") or []]
    predicting = tuple(name.removesuffix(PREDICTION) for name in base if name.endswith(f".{PREDICTION}"))
    for name, tensor in base.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(tensor.shape) < 2 or module in adapted or name.startswith((*UNLOADED, *predicting)):
            continue
        targeted, replaced = (any(is_module_named(module, name) for name in names) for names in (targets, saved))
        if targeted and not replaced:
            raise ImpruverError(
                f"{adapter.folder}: the adapter has nothing for {module}, which target_modules names: it is not whole, "
                "or of another base; copy it again"
            )
