"""The device and dtype to compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CPU_BF16 = ("avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve_bf16")  # names of torch.cpu.get_capabilities


def choose_device() -> str:
    """The accelerator that torch finds (`cuda`, `mps`, `xpu`…), else `cpu`."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def has_bf16(device: str) -> bool:
    """Whether `device` computes bf16 in hardware; emulation does not count (on a CPU it is 30 times slower)."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(capabilities.get(name, False) for name in CPU_BF16)
    return device.startswith("xpu")


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype to compute in: `auto` is bf16 where `device` has it, else fp32 on a CPU and fp16 elsewhere."""
    import torch

    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32" if device == "cpu" else "fp16"
    if name not in DTYPES:
        raise ImpruverError(f"model.dtype: {name!r} is none of auto, {', '.join(DTYPES)}")
    return getattr(torch, DTYPES[name])
