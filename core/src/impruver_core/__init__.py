"""Impruver's core: what its tools share. Importing it imports neither torch nor transformers."""

from importlib import import_module

_HOMES = {
    "load_recipe": "impruver_core.recipe.loading",
    "Recipe": "impruver_core.recipe.loading",
    "load_tokenizer": "impruver_core.tokenizer",
    "encode_chats": "impruver_core.chat_template.masking.loss_mask",
    "encode_chat": "impruver_core.chat_template.masking.loss_mask",
    "encode_prompt": "impruver_core.chat_template.masking.loss_mask",
    "end_of_turn": "impruver_core.chat_template.selection",
    "Encoded": "impruver_core.chat_template.masking.loss_mask",
    "Refused": "impruver_core.chat_template.masking.loss_mask",
    "RefusedError": "impruver_core.errors",
    "RecipeError": "impruver_core.errors",
    "ImpruverError": "impruver_core.errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
