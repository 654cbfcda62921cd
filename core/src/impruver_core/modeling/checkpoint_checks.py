"""Weights that are loaded: whether they are those that config.json describes, and that they stay as they are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError


def check_loading_info(model: Any, info: dict[str, Any], name: str) -> None:
    """ImpruverError where `info` of `from_pretrained` tells of tensors without weights, of other shapes, or unused."""
    fault = next(_faults(model, info), None)
    if fault:
        raise ImpruverError(f"model.name: {name}: {fault}")


def disable_cpu_4bit_repacking(model: Any) -> None:
    """Has 4-bit matrices on a CPU stay as they were loaded.

    Where a CPU has bf16 instructions, bitsandbytes rewrites them at the first forward pass outside of training: from
    then on they are computed in bf16, whatever the dtype, and pass no gradient on.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _faults(model: Any, info: dict[str, Any]) -> Iterator[str]:
    kind, mismatched, missing = type(model).__name__, info["mismatched_keys"], info["missing_keys"]
    if mismatched:
        tensor, saved, wanted = min(mismatched)
        more = f"; {len(mismatched)} tensors do not fit" if len(mismatched) > 1 else ""
        yield (
            f"{tensor} is {tuple(saved)} in the weights, and {tuple(wanted)} by config.json{more}: they are not of one "
            "model; copy both again"
        )
    if missing:
        yield (
            f"it has no weights for {_listed(missing)} of {kind}; they would start at random: set the model.class it "
            "was saved with, or copy config.json and weights again"
        )
    # Of a module that the model has, in another layer at least. Buffers and heads left out do no harm.
    modules = {_module(tensor) for tensor, _ in model.named_parameters()}
    unused = [tensor for tensor in info["unexpected_keys"] if _module(tensor) in modules]
    if unused:
        yield (
            f"by config.json {kind} has no place for {_listed(unused)}: fewer layers, or no bias? It would not be the "
            "model that was saved; copy config.json again"
        )


def _module(tensor: str) -> str:
    return re.sub(r"\d+", "#", tensor.rpartition(".")[0])


def _listed(tensors: Any) -> str:
    """`2 tensors (a, b)`, three at most."""
    more = ", …" if len(tensors) > 3 else ""
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)} ({', '.join(sorted(tensors)[:3])}{more})"


# torch names each such tensor in a line of its own.
MISMATCH = (
    r"size mismatch for (\S+): copying a param with shape (.*?) from checkpoint.*current model is (.*?)\.?(?:\n|$)"
)


@contextmanager
def shape_errors_as_user_errors(adapter_dir: str | Path) -> Iterator[None]:
    """Turns torch's error about shapes into one message with the first of them."""
    try:
        yield
    except RuntimeError as error:
        found = re.findall(MISMATCH, str(error))
        if not found:
            raise
        name, saved, here = (text.replace("torch.Size", "") for text in found[0])
        more = f" ({len(found)} tensors do not fit)" if len(found) > 1 else ""
        raise ImpruverError(
            f"adapter: {adapter_dir} was trained on another base, or its adapter_config.json was changed: {name} is "
            f"{saved} in it, and {here} here{more}"
        ) from error


def check_adapter_complete(model: Any, adapter_dir: Path) -> None:
    """ImpruverError where `model`, with the adapter on it, has other LoRA tensors than the adapter's file."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = adapter_dir / "adapter_model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys() if "lora_" in name}  # noqa: SIM118
    here = {name: list(weight.shape) for name, weight in get_peft_model_state_dict(model).items() if "lora_" in name}
    for names, what in ((saved.keys() - here.keys(), "has no place for"), (here.keys() - saved.keys(), "also has")):
        if names:
            first = min(names)
            shape = tuple((saved | here)[first])
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ImpruverError(
                f"adapter: {adapter_dir} was trained on another base: this one {what} {first} {shape}{more}"
            )
