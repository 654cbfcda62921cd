"""Callbacks are classes of their own: transformers, and with it their base, takes seconds to import."""

from typing import Any


def as_callback(kind: type, *parts: Any) -> Any:
    """A `kind` of these parts that is a transformers.TrainerCallback too."""
    from transformers import TrainerCallback

    return type(kind.__name__, (kind, TrainerCallback), {})(*parts)
