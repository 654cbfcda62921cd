"""Merge LoRA on a mixture's experts (peft's target_parameters) into them, one matrix at a time.

transformers 5 holds all experts of a layer as two stacks, `gate_up_proj` (experts, 2 x width, inputs) and `down_proj`
(experts, inputs, width), and peft trains an A and a B for each whole stack, of rank r for each of E experts:

    A (E * r, inputs)     expert e has the rows e * r, e * r + 1, ... e * r + r - 1
    B (outputs, r * E)    expert e has the columns e, e + E, e + 2 * E, ...

Checkpoints have a matrix for each expert and projection, or these stacks. An adapter's names do not say which stack
is meant (`experts` and `experts.base_layer`): the sizes do.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from impruver_core.errors import ImpruverError

from impruver_gguf.merging.lora_math import add_lora
from impruver_gguf.weights.checkpoint import get_rank, get_scaling
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, stack_tensors

MODULE = re.compile(r"(.+\.experts)(\.base_layer)*")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # a stack → what checkpoints have


def find_experts(module: str) -> str | None:
    """The module of experts that an adapter's module stands for, if it stands for such."""
    match = MODULE.fullmatch(module)
    return match[1] if match else None


def merge_expert_lora(
    tensors: dict[str, LazyTensor], name: str, module: str, parts: Tensors, config: Mapping[str, Any]
) -> None:
    """Put an update of all experts of a layer into their weights, which the base calls `name`, the adapter `module`."""
    if parts.keys() != {"a", "b"}:
        raise ImpruverError(f"{module}: the adapter has {', '.join(sorted(parts))} of lora_A and lora_B; copy it whole")
    a, b = parts["a"], parts["b"]
    sizes = {stack: _find_sizes(tensors, name, stack) for stack in FUSED}
    (outer, inputs), (outputs, width) = sizes.values()
    stack = next((stack for stack in FUSED if sizes[stack] == (b.shape[0], a.shape[1])), None)
    # Some models hold their stacks with inputs before outputs, which can look alike.
    if stack is None or (outer, inputs) != (2 * width, outputs):
        raise ImpruverError(
            f"{module}: the adapter's {list(b.shape)} x {list(a.shape)} fits no stack of the base's experts "
            "(gate_up_proj of 2 x width outputs, down_proj of as many inputs as width): merge it with peft "
            "(merge_and_unload, save_pretrained) and give that folder as output_dir"
        )
    rank, scaling = (get(config, f"{module}.{stack}") for get in (get_rank, get_scaling))
    count = _count_experts(tensors, name, stack)
    if a.shape[0] != count * rank or b.shape[1] != count * rank:
        raise ImpruverError(
            f"{module}: lora_A has {a.shape[0]} rows and lora_B {b.shape[1]} columns; {count} experts of rank {rank} "
            "have as many as their product: the adapter was trained on another base, or adapter_config.json is not its"
        )
    read_b = lru_cache(maxsize=1)(b.read_float32)

    def add(weight: LazyTensor, expert: int, first: int) -> LazyTensor:
        own_a = LazyTensor((rank, a.shape[1]), _shift(a, expert * rank))
        own_b = LazyTensor((weight.shape[0], rank), _pick_columns(read_b, first, expert, count))
        return add_lora(weight, own_a, own_b, scaling, transposed=False)

    if fused := _find_fused(tensors, name, stack):
        weight = tensors[fused]
        matrices = [LazyTensor(weight.shape[1:], _shift(weight, expert * weight.shape[1])) for expert in range(count)]
        tensors[fused] = stack_tensors([add(matrix, expert, 0) for expert, matrix in enumerate(matrices)])
        return
    for expert in range(count):
        first = 0
        for projection in FUSED[stack]:
            key = f"{name}.{expert}.{projection}.weight"
            weight = tensors[key]
            tensors[key] = add(weight, expert, first)
            first += weight.shape[0]


def _find_fused(tensors: Tensors, name: str, stack: str) -> str | None:
    return next((key for key in (f"{name}.{stack}", f"{name}.{stack}.weight") if key in tensors), None)


def _find_sizes(tensors: Tensors, name: str, stack: str) -> tuple[int, int]:
    """The outputs and inputs of an expert's matrix in a stack; 0 of both where the base has no such experts."""
    fused = _find_fused(tensors, name, stack)
    names = [fused] if fused else [f"{name}.0.{projection}.weight" for projection in FUSED[stack]]
    shapes = [tensors[key].shape[-2:] for key in names if key in tensors and len(tensors[key].shape) > 1]
    return (sum(rows for rows, _ in shapes), shapes[0][1]) if len(shapes) == len(names) else (0, 0)


def _count_experts(tensors: Tensors, name: str, stack: str) -> int:
    fused = _find_fused(tensors, name, stack)
    if fused:
        return tensors[fused].shape[0]
    count = 0
    while all(f"{name}.{count}.{projection}.weight" in tensors for projection in FUSED[stack]):
        count += 1
    return count


def _shift(tensor: LazyTensor, offset: int) -> Callable[[int, int], np.ndarray]:
    """A reader of the rows from `offset` on."""
    return lambda start, stop: tensor.read(offset + start, offset + stop)


def _pick_columns(
    read: Callable[[], np.ndarray], offset: int, first: int, step: int
) -> Callable[[int, int], np.ndarray]:
    """A reader of the rows from `offset` on, of each of them the columns `first`, `first + step` and so on."""
    return lambda start, stop: read()[offset + start : offset + stop, first::step]
