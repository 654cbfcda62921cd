"""How long a row may be."""

import json
from pathlib import Path

from impruver_core.cli.console import log_info
from impruver_core.recipe.paths import find_local, is_local_path

UNLIMITED = 10**9  # transformers writes 10**30 for a tokenizer that knows no limit


CONFIG_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def resolve_max_length(recipe, tokenizer) -> int | None:
    """tokenizer.max_tokens_count, else the smaller of the tokenizer's and the model's limit; None: none is known."""
    if recipe.tokenizer.max_tokens_count is not None:
        return recipe.tokenizer.max_tokens_count
    limits = (tokenizer.model_max_length, _get_context_length(recipe.model, recipe.base_dir))
    known = [limit for limit in limits if limit and limit < UNLIMITED]
    if not known:
        log_info("neither tokenizer nor model tells a longest row: none is dropped for its length")
    return min(known, default=None)


def _get_context_length(section, recipe_dir: Path) -> int | None:
    config = section.config
    if section.name:
        config = _load_config(section.name, recipe_dir)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    values = [part.get(name) for part in parts for name in CONFIG_NAMES]
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _load_config(name: str, recipe_dir: Path) -> dict:
    """The config.json of a folder or hub id; {} where it can't be had: a limit is no reason to stop."""
    found = find_local(name, recipe_dir)
    path = (found or Path(name)) / "config.json"
    try:
        if found is None and not is_local_path(name):
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(name, "config.json"))
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except Exception as error:  # offline, gated, misspelt, broken: whoever loads the model tells
        log_info(f"the longest row of {name} is not known ({type(error).__name__}): the tokenizer's limit counts")
        return {}
