"""Whether an adapter fits the base that it is put on: torch tells of shapes, peft of the rest at most by a warning."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError

# torch names each such tensor in a line of its own.
MISMATCH = (
    r"size mismatch for (\S+): copying a param with shape (.*?) from checkpoint.*current model is (.*?)\.?(?:\n|$)"
)


@contextmanager
def mismatch_told(adapter_dir: str | Path) -> Iterator[None]:
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


def require_whole(model: Any, adapter_dir: Path) -> None:
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
