"""Checks of loaded weights: a model's against its config.json, an adapter's against its base."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def check_loading_info(model: PreTrainedModel, info: dict[str, Any], name: str) -> None:
    """ImpruverError where tensors of a loaded model have no weights or other shapes, or weights are unused.

    `info` is what `from_pretrained(…, output_loading_info=True)` returns.
    """
    fault = next(_find_faults(model, info), None)
    if fault:
        raise ImpruverError(f"model.name: {name}: {fault}")


def disable_cpu_4bit_repacking(model: PreTrainedModel) -> None:
    """Has 4-bit matrices on a CPU stay as they were loaded.

    Where a CPU has bf16 instructions, bitsandbytes rewrites them at the first forward pass outside of training: from
    then on they are computed in bf16, whatever the dtype, and pass no gradient on.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _find_faults(model: PreTrainedModel, info: dict[str, Any]) -> Iterator[str]:
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
            f"it has no weights for {_format_names(missing)} of {kind}; they would start at random: set the "
            "model.class it was saved with, or copy config.json and weights again"
        )
    # Of a module that the model has, in another layer at least. Buffers and heads left out do no harm.
    modules = {_get_module_name(tensor) for tensor, _ in model.named_parameters()}
    unused = [tensor for tensor in info["unexpected_keys"] if _get_module_name(tensor) in modules]
    if unused:
        yield (
            f"by config.json {kind} has no place for {_format_names(unused)}: fewer layers, or no bias? It would not "
            "be the model that was saved; copy config.json again"
        )


def _get_module_name(tensor: str) -> str:
    """The module of a tensor, the same for all layers: `model.layers.#.mlp`."""
    return re.sub(r"\d+", "#", tensor.rpartition(".")[0])


def _format_names(tensors: Collection[str]) -> str:
    """`2 tensors (a, b)`, three at most."""
    more = ", …" if len(tensors) > 3 else ""
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)} ({', '.join(sorted(tensors)[:3])}{more})"


# torch names each such tensor in a line of its own.
MISMATCH = (
    r"size mismatch for (\S+): copying a param with shape (.*?) from checkpoint.*current model is (.*?)\.?(?:\n|$)"
)


@contextmanager
def shape_errors_as_user_errors(adapter_dir: str | Path) -> Iterator[None]:
    """Turns torch's error about the shapes of an adapter's tensors into one message with the first of them."""
    try:
        yield
    except RuntimeError as error:
        mismatches = re.findall(MISMATCH, str(error))
        if not mismatches:
            raise
        name, saved, here = (text.replace("torch.Size", "") for text in mismatches[0])
        more = f" ({len(mismatches)} tensors do not fit)" if len(mismatches) > 1 else ""
        raise ImpruverError(
            f"adapter: {adapter_dir} was trained on another base, or its adapter_config.json was changed: {name} is "
            f"{saved} in it, and {here} here{more}"
        ) from error


def check_adapter_complete(model: PeftModel, adapter_dir: Path) -> None:
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
