"""Adds what peft trained to the weights it was trained on, one tensor at a time, in float32.

What would not come out exactly is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from impruver_core.errors import ImpruverError

from impruver_gguf.merging.adapter_checks import check_complete, check_fits, check_rank, check_shapes, ends
from impruver_gguf.merging.lora_math import with_bias, with_lora, with_magnitude, with_rows
from impruver_gguf.merging.tied_embeddings import Change, share_or_part, tied_in
from impruver_gguf.weights.lazy_tensor import Tensor, wide
from impruver_gguf.weights.peft_adapter import Adapter, check_method, rank_of, scaling_of

PREFIX = "base_model.model."


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


def merged(
    base: dict[str, Tensor],
    adapter: Adapter,
    *,
    conv1d: tuple[str, ...] | None = None,
    tied: tuple[str, str] | None = None,
) -> dict[str, Tensor]:
    """The base's tensors with the adapter in them, in the base's order; nothing is computed before it is read.

    `conv1d`: how modules with transposed weights end (None: the adapter's fan_in_fan_out counts); `tied` names the
    modules of input and output embeddings where they share their weights.
    """
    check_method(adapter)
    changes = _changes(adapter)
    names = _module_names(base, [*changes, *(tied or ())])
    result = {name: wide(tensor) if len(tensor.shape) == 1 else tensor for name, tensor in base.items()}
    if tied and changes.keys() & set(tied) and tied_in(result, tied, names):
        share_or_part(result, changes, names, tied, adapter.config)
    for module, change in changes.items():
        transposed = bool(adapter.config.get("fan_in_fan_out")) if conv1d is None else module.endswith(conv1d)
        _apply(result, names.get(module, module), module, change, adapter, transposed)
    adapted = {names.get(module, module) for module, change in changes.items() if change.low_rank}
    check_complete(base, adapter, adapted)
    return result


def _apply(
    result: dict[str, Tensor], name: str, module: str, change: Change, adapter: Adapter, transposed: bool
) -> None:
    """One module's change, in `result`; `name` is what the base calls the module."""
    for kind, tensor in change.whole.items():
        check_fits(module, tensor, result.get(f"{name}.{kind}"))
        result[f"{name}.{kind}"] = tensor
    weight = result.get(f"{name}.weight")
    if weight is None:
        raise ImpruverError(f"the adapter changes {module}, which its base does not have: it is of another base")
    if "rows" in change.parts:
        result[f"{name}.weight"] = _with_rows(weight, change.parts["rows"], module, adapter.config)
    if change.low_rank:
        _add_low_rank(result, name, module, change, adapter, transposed)


def _changes(adapter: Adapter) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for name, tensor in adapter.tensors.items():
        place = name.removeprefix(PREFIX)
        suffix = next((suffix for suffix in PARTS if place.endswith(suffix)), None)
        if suffix:
            changes.setdefault(place.removesuffix(suffix), Change()).parts[PARTS[suffix]] = tensor
            continue
        module, _, kind = place.replace(".base_layer.", ".").rpartition(".")
        if not module or kind not in ("weight", "bias") or ".lora_" in place:
            raise ImpruverError(f"{adapter.folder}: {name} is nothing that can be merged exactly; merge it with peft")
        changes.setdefault(module, Change()).whole[kind] = tensor
    return changes


def _module_names(base: dict[str, Tensor], modules: Iterable[str]) -> dict[str, str]:
    """Module as the adapter calls it → as the base's file does: files of a bare model lack the first part."""
    bare = {module: module.partition(".")[2] for module in modules}
    return {m: name for m, name in bare.items() if f"{m}.weight" not in base and f"{name}.weight" in base}


def _with_rows(weight: Tensor, rows: Tensor, module: str, config: dict[str, Any]) -> Tensor:
    indices = _token_indices(module, config)
    if len(indices) != rows.shape[0] or rows.shape[1:] != weight.shape[1:]:
        raise ImpruverError(
            f"{module}: the adapter has rows {list(rows.shape)} for {len(indices)} tokens, its base "
            f"{list(weight.shape)}"
        )
    unknown = sorted(set(range(weight.shape[0], max(indices, default=0))) - set(indices))
    if unknown:
        raise ImpruverError(f"{module}: token {unknown[0]} has a row neither in the base nor in the adapter")
    return with_rows(weight, rows, indices)


def _token_indices(module: str, config: dict[str, Any]) -> Sequence[int]:
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        return next((numbers for name, numbers in indices.items() if ends(module, name)), [])
    return indices


def _add_low_rank(
    result: dict[str, Tensor], name: str, module: str, change: Change, adapter: Adapter, conv1d: bool
) -> None:
    """The module's weight, and its bias if that was trained, with LoRA's update."""
    parts, weight = change.parts, result[f"{name}.weight"]
    embedding = "embedding_a" in parts or "embedding_b" in parts
    transposed = conv1d or embedding
    a, b = (parts.get(f"embedding_{part}" if embedding else part) for part in "ab")
    if a is None or b is None:
        raise ImpruverError(f"{module}: the adapter has only one of lora_A and lora_B")
    check_rank(module, a, rank_of(adapter.config, module), adapter)
    check_shapes(module, a, b, weight, transposed)
    scaling = scaling_of(adapter.config, module)
    weight = with_lora(weight, a, b, scaling, transposed)
    if adapter.config.get("use_dora") and "magnitude" not in parts:
        raise ImpruverError(f"{module}: use_dora is set, but the adapter has no lora_magnitude_vector; copy it whole")
    if "magnitude" in parts:
        weight = with_magnitude(weight, parts["magnitude"], transposed)
    result[f"{name}.weight"] = weight
    if "bias" in parts:
        if f"{name}.bias" not in result:
            raise ImpruverError(f"{module}: the adapter has a bias, its base has none: it is of another base")
        result[f"{name}.bias"] = with_bias(result[f"{name}.bias"], parts["bias"], scaling)
