"""Parameter counts."""

from dataclasses import dataclass
from typing import Any

from impruver_train.modeling.chunked_loss import LogitsPath


@dataclass(frozen=True)
class Size:
    """Numbers of parameters, adapter included: all, trained, in matrices that quantization holds in fewer bits.

    `inputs`: values a token that backward needs as inputs of trained matrices, in all layers; `dropped` of them pass
    an adapter's dropout, which keeps its mask. `every`: the inputs of all matrices, which 8-bit ones keep. `attention`:
    its implementation's name. `logits`: which of them a step computes, `logits_tested` on a small model.
    """

    total: int
    trainable: int
    quantizable: int = 0
    inputs: int = 0
    dropped: int = 0
    every: int = 0
    attention: str = "sdpa"
    logits: LogitsPath = LogitsPath.ALL
    logits_tested: bool = False


def count(model: Any, trainable: int, total: int) -> Size:
    """The size of `model`, on the meta device, its adapter included."""
    import torch

    attention = str(model.config.get_text_config()._attn_implementation)
    matrices = {name: part for name, part in model.named_modules() if is_matrix(name, part)}
    matrices = {name: part for name, part in matrices.items() if part is not model.get_output_embeddings()}
    adapted = {name: part for name, part in model.named_modules() if getattr(part, "lora_A", None)}
    dropping = {
        name: part
        for name, part in adapted.items()
        if any(isinstance(each, torch.nn.Dropout) for each in part.lora_dropout.values())
    }
    dropped = sum(part.in_features for part in dropping.values())
    learning = {name: part for name, part in matrices.items() if part.weight.requires_grad}
    inputs = dropped + distinct(learning | {name: adapted[name] for name in adapted.keys() - dropping.keys()})
    quantizable = sum(part.weight.numel() for part in matrices.values())
    every = distinct({name.removesuffix(".base_layer"): part for name, part in matrices.items()})
    return Size(total, trainable, quantizable, inputs, dropped, every, attention)


def is_matrix(name: str, part: Any) -> bool:
    """Whether a module is a matrix of the model itself, not one of an adapter nor the adapter's wrapper around it."""
    kind = type(part).__name__
    return kind in ("Linear", "Conv1D") and "lora_" not in name and not hasattr(part, "base_layer")


def distinct(matrices: dict[str, Any]) -> int:
    """The widths of the inputs of `matrices`, those that several read (q, k and v do) once."""
    widths = {
        (name.rpartition(".")[0], getattr(part, "in_features", None) or part.weight.shape[0])
        for name, part in matrices.items()
    }
    return sum(width for _, width in widths)
