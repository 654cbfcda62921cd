"""Impruver's core: what its tools share. Importing it imports neither torch nor transformers."""

from importlib import import_module

_HOMES = {
    "load_recipe": "impruver_core.recipe.load",
    "Recipe": "impruver_core.recipe.load",
    "load_tokenizer": "impruver_core.templating.tokenizer",
    "encode_chats": "impruver_core.templating.mask",
    "encode_chat": "impruver_core.templating.mask",
    "encode_prompt": "impruver_core.templating.mask",
    "end_of_turn": "impruver_core.templating.template",
    "Encoded": "impruver_core.templating.mask",
    "Refused": "impruver_core.templating.mask",
    "RefusedError": "impruver_core.errors",
    "RecipeError": "impruver_core.errors",
    "ImpruverError": "impruver_core.errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
