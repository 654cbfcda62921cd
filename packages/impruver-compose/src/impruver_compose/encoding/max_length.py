"""How long a row may be."""

from pathlib import Path

from impruver_core.cli.console import log_info
from impruver_core.io.json_schema import read_json
from impruver_core.io.model_files import get_context_length
from impruver_core.recipe.paths import find_or_download

UNLIMITED = 10**9  # transformers writes 10**30 for a tokenizer that knows no limit


def resolve_max_length(recipe, tokenizer) -> int | None:
    """tokenizer.max_tokens_count, else the smaller of the tokenizer's and the model's limit; None: none is known."""
    if recipe.tokenizer.max_tokens_count is not None:
        return recipe.tokenizer.max_tokens_count
    config = _load_config(recipe.model.name, recipe.base_dir) if recipe.model.name else recipe.model.config
    limits = (tokenizer.model_max_length, get_context_length(config))
    known = [limit for limit in limits if limit and limit < UNLIMITED]
    if not known:
        log_info("neither tokenizer nor model tells a longest row: none is dropped for its length")
    return min(known, default=None)


def _load_config(name: str, recipe_dir: Path) -> dict:
    """The config.json of a folder or hub id; {} where it can't be had: a limit is no reason to stop."""
    try:
        return read_json(find_or_download(name, recipe_dir, ["config.json"]) / "config.json")
    except Exception as error:  # offline, gated, misspelt, broken: whoever loads the model tells
        log_info(f"the longest row of {name} is not known ({type(error).__name__}): the tokenizer's limit counts")
        return {}
