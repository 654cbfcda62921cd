"""Tied embeddings under an adapter: one matrix, unless training made two of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from impruver_core.cli.console import warn

from impruver_gguf.merging.adapter_checks import ends
from impruver_gguf.weights.lazy_tensor import Tensor, equal
from impruver_gguf.weights.peft_adapter import scaling_of


@dataclass
class Change:
    """What an adapter does to one module: A and B, rows of trained tokens, or whole tensors instead."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)  # "weight", "bias"

    @property
    def low_rank(self) -> bool:
        """Whether there is anything of LoRA."""
        return bool(self.parts.keys() - {"rows"})


def tied_in(result: dict[str, Tensor], tied: tuple[str, str], names: dict[str, str]) -> bool:
    """Whether a file's weights are tied, as transformers judges: a head of its own, unless it is a copy, which goes."""
    embedding, head = (f"{names.get(module, module)}.weight" for module in tied)
    if head in result and not equal(result[embedding], result[head]):
        return False
    result.pop(head, None)
    return True


def share_or_part(
    result: dict[str, Tensor], changes: dict[str, Change], names: dict[str, str], tied: tuple[str, str], config: dict
) -> None:
    """Tied embeddings stay one matrix, unless the adapter trained one of the two ends by itself."""
    embedding, output = tied
    below, above = changes.get(embedding, Change()), changes.get(output, Change())
    saved = [str(name) for name in config.get("modules_to_save") or []]
    own_output = any(ends(output, name) for name in saved)
    own_embedding = any(ends(embedding, name) for name in saved) and not _same_whole(below, above)
    alike = scaling_of(config, embedding) == scaling_of(config, output) and _alike(below.parts, above.parts)
    trained_output = (above.low_rank and not alike) or ("rows" in above.parts and "rows" not in below.parts)
    if not own_output and not trained_output:
        changes.pop(output, None)  # a second copy of the embeddings
    if trained_output or (own_embedding and not own_output):
        result.setdefault(f"{output}.weight", result[f"{names.get(embedding, embedding)}.weight"])
    elif below.low_rank and not above.low_rank and not own_output:
        warn(
            f"LoRA on {embedding} alone is merged into the tied output too, as peft merges it: training left that "
            "as it was, so the model may answer otherwise"
        )


def _same_whole(below: Change, above: Change) -> bool:
    """Whether both ends were saved, as one: what peft's ensure_weight_tying makes of modules_to_save."""
    one, other = below.whole.get("weight"), above.whole.get("weight")
    return one is not None and other is not None and equal(one, other)


def _alike(below: dict[str, Tensor], above: dict[str, Tensor]) -> bool:
    """Whether LoRA on the output is that on the embeddings, turned over: what peft's ensure_weight_tying trains."""
    if above.keys() != {"a", "b"} or below.keys() != {"embedding_a", "embedding_b"}:
        return False
    return all(
        np.array_equal(below[f"embedding_{one}"].float32().T, above[other].float32()) for one, other in ("ab", "ba")
    )
