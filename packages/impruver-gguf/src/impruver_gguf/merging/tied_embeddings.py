"""Keep tied embeddings one matrix under an adapter, unless training made two of it.

Tied: the output layer (`lm_head`) is the input embedding (`embed_tokens`); a file holds one of them, or both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from impruver_core.cli.console import warn

from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, has_same_values
from impruver_gguf.weights.peft_adapter import get_scaling, is_module_named


class TiedModules(NamedTuple):
    """The modules that share one matrix, by transformers' names."""

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


def drop_tied_output(tensors: dict[str, LazyTensor], tied: TiedModules, names: Mapping[str, str]) -> bool:
    """Say whether the weights in a file are tied, as transformers judges; an output that is a copy is taken out.

    `names`: module → what the file calls it, where that differs.
    """
    embedding, output = (f"{names.get(module, module)}.weight" for module in tied)
    if output in tensors and not has_same_values(tensors[embedding], tensors[output]):
        return False
    tensors.pop(output, None)
    return True


def untie_if_needed(
    tensors: dict[str, LazyTensor], deltas: dict[str, ModuleDelta], tied: TiedModules, name: str, config: dict[str, Any]
) -> None:
    """Give `tensors` an output of its own where the adapter trained one of the two ends by itself.

    Else the output's delta, a second copy of the embedding's, is taken out of `deltas`. `name`: the file's embedding.
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
    if not own_output and not trained_output:
        deltas.pop(output, None)
    if trained_output or (own_embedding and not own_output):
        tensors.setdefault(f"{output}.weight", tensors[f"{name}.weight"])
    elif below.has_lora and not above.has_lora and not own_output:
        warn(
            f"LoRA on {embedding} alone is merged into the tied output too, as peft merges it: training left that "
            "as it was, so the model may answer otherwise"
        )


def _is_same_update(below: Tensors, above: Tensors) -> bool:
    """Whether the output's LoRA is the embedding's, transposed: what PEFT's ensure_weight_tying trains."""
    if above.keys() != {"a", "b"} or below.keys() != {"embedding_a", "embedding_b"}:
        return False
    pairs = ((below["embedding_a"], above["b"]), (below["embedding_b"], above["a"]))
    return all(np.array_equal(one.read_float32().T, other.read_float32()) for one, other in pairs)
