"""Whether an adapter fits its base and is whole: what it lacks or has in another shape is an ImpruverError."""

from __future__ import annotations

from impruver_core.errors import ImpruverError

from impruver_gguf.weights.lazy_tensor import Tensor
from impruver_gguf.weights.peft_adapter import Adapter

CHOOSING = ("layers_to_transform", "layers_pattern", "exclude_modules")  # what leaves out some of target_modules


def check_complete(base: dict[str, Tensor], adapter: Adapter, adapted: set[str]) -> None:
    """Every module that adapter_config.json names by the end of its name has its part in the adapter."""
    config = adapter.config
    if not adapter.tensors:
        raise ImpruverError(f"{adapter.folder}: the adapter holds no tensors; train it again, or copy it whole")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(name) for name in CHOOSING):
        return
    saved = config.get("modules_to_save") or []
    for name, tensor in base.items():
        module, _, kind = name.rpartition(".")
        wanted = kind == "weight" and len(tensor.shape) > 1 and any(ends(module, target) for target in targets)
        if wanted and module not in adapted and not any(ends(module, str(name)) for name in saved):
            raise ImpruverError(
                f"{adapter.folder}: the adapter has nothing for {module}, which target_modules names: it is not whole, "
                "or of another base; copy it again"
            )


def check_fits(module: str, tensor: Tensor, before: Tensor | None) -> None:
    """Only the number of rows may differ: a grown vocabulary."""
    if before is not None and tensor.shape[1:] != before.shape[1:]:
        raise ImpruverError(
            f"{module}: the adapter's {list(tensor.shape)} does not fit the base's {list(before.shape)}: it was "
            "trained on another base"
        )


def check_rank(module: str, a: Tensor, rank: int, adapter: Adapter) -> None:
    """The tensors have the rank that the configuration gives this module."""
    if a.shape[0] != rank:
        raise ImpruverError(
            f"{adapter.folder}: {module}.lora_A.weight has rank {a.shape[0]}, adapter_config.json says {rank} (r or "
            "rank_pattern): the two are of different trainings; copy both files from one"
        )


def check_shapes(module: str, a: Tensor, b: Tensor, weight: Tensor, transposed: bool) -> None:
    """B @ A has the shape of the weight."""
    shape = (b.shape[0], a.shape[1])
    if a.shape[0] != b.shape[1] or (shape[::-1] if transposed else shape) != weight.shape:
        raise ImpruverError(
            f"{module}: the adapter's {list(b.shape)} x {list(a.shape)} does not fit the base's {list(weight.shape)}: "
            "it was trained on another base"
        )


def ends(module: str, name: str) -> bool:
    """Whether a module's path ends in a name, as peft matches them."""
    return module == name or module.endswith(f".{name}")
