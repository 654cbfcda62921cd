"""What is computed in and what weights are held in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError
from impruver_core.modeling.loading import DTYPES, has_bf16, resolve_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """What is computed in, what weights are held in, and the kind of autocast: bf16, fp16 or None."""

    compute: torch.dtype
    trained: torch.dtype
    frozen: torch.dtype
    autocast: str | None

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """For torch.autocast; None where weights are held in what is computed in."""
        return self.compute if self.autocast else None


def choose_precision(dtype: str, trainer: dict[str, Any], device: str) -> tuple[Precision, list[str]]:
    """The precision for `model.dtype` and `trainer.bf16` / `fp16` on `device`, and warnings.

    Trained weights are fp32 under autocast, frozen ones 16 bit, unless `trainer.bf16: false` asks for pure bf16.
    """
    import torch

    asked = {name: trainer.get(name) for name in ("bf16", "fp16")}
    chosen = [name for name in asked if asked[name]]
    if len(chosen) > 1 or (chosen and dtype not in ("auto", chosen[0])):
        raise ImpruverError(f"trainer.{chosen[0]}: true contradicts model.dtype: {dtype}; model.dtype alone is enough")
    compute = resolve_dtype(chosen[0] if chosen else dtype, device)
    name = next(short for short, long in DTYPES.items() if getattr(torch, long) == compute)
    pure = name != "fp32" and asked[name] is False
    if pure and dtype == "auto":
        name, compute, pure = "fp32", torch.float32, False
    if name == "fp16" and device == "cpu":
        raise ImpruverError("model.dtype: fp16 can't be trained on a CPU; set auto or fp32")
    if name == "fp16" and pure:
        raise ImpruverError(
            "trainer.fp16: false with model.dtype: fp16: pure fp16 does not train; leave trainer.fp16 out"
        )
    warnings = []
    if name == "bf16" and not has_bf16(device):
        slow = " (30 times slower than fp32 where it was measured)" if device == "cpu" else ""
        warnings.append(
            f"this {device.upper()} has no bf16 in hardware: it is emulated{slow}; model.dtype: auto avoids it"
        )
    if pure:
        warnings.append("trainer.bf16: false: pure bf16, whose trained weights lose small updates")
    trained = compute if pure else torch.float32
    return Precision(compute, trained, compute, None if pure or name == "fp32" else name), warnings
