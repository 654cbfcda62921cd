"""Numbers of parameters and widths of inputs, counted on torch's meta device: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from impruver_train.modeling.chunked_loss import LogitsPath

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, adapter included, and what of a step's memory depends on the modules."""

    total: int
    trainable: int
    quantizable: int = 0  # in matrices that quantization holds in fewer bits
    inputs: int = 0  # values a token that backward needs as inputs of trained matrices, in all layers
    dropped: int = 0  # of these, what passes an adapter's dropout, which keeps its mask
    every: int = 0  # inputs of all matrices, which 8-bit ones keep
    attention: str = "sdpa"
    logits: LogitsPath = LogitsPath.ALL
    logits_tested: bool = False  # on a small model of the class


def count_parameters(model: nn.Module, trainable: int, total: int) -> ModelSize:
    """The size of `model`, its adapter included; which logits it computes is not said yet."""
    import torch

    attention = str(model.config.get_text_config()._attn_implementation)
    matrices = {name: module for name, module in model.named_modules() if _is_model_matrix(name, module)}
    matrices = {name: module for name, module in matrices.items() if module is not model.get_output_embeddings()}
    adapted = {name: module for name, module in model.named_modules() if getattr(module, "lora_A", None)}
    dropping = {
        name: module
        for name, module in adapted.items()
        if any(isinstance(each, torch.nn.Dropout) for each in module.lora_dropout.values())
    }
    dropped = sum(module.in_features for module in dropping.values())
    trained = {name: module for name, module in matrices.items() if module.weight.requires_grad}
    inputs = dropped + _sum_input_widths(trained | {name: adapted[name] for name in adapted.keys() - dropping.keys()})
    quantizable = sum(module.weight.numel() for module in matrices.values())
    every = _sum_input_widths({name.removesuffix(".base_layer"): module for name, module in matrices.items()})
    return ModelSize(total, trainable, quantizable, inputs, dropped, every, attention)


def _is_model_matrix(name: str, module: nn.Module) -> bool:
    """Whether a module is a matrix of the model itself, not one of an adapter nor the adapter's wrapper around it."""
    kind = type(module).__name__
    return kind in ("Linear", "Conv1D") and "lora_" not in name and not hasattr(module, "base_layer")


def _sum_input_widths(matrices: dict[str, nn.Module]) -> int:
    """The widths of the inputs of `matrices`, those that several read (q, k and v do) once."""
    widths = {
        (name.rpartition(".")[0], getattr(module, "in_features", None) or module.weight.shape[0])
        for name, module in matrices.items()
    }
    return sum(width for _, width in widths)
