"""The small JSON files beside a model's weights, read and checked: config.json and what else chat takes from them."""

import json
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import read_manifest

CONFIG = {"model_type": str, "architectures": list, "text_config": dict}
SHOWN = {str: "text", list: "a list", dict: "an object"}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file; ImpruverError where it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise ImpruverError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ImpruverError(f"{path}: not a JSON object")
    return content


def saved_ends(output_dir: Path) -> list[str] | None:
    """The ends of turn that training wrote into its manifest."""
    path = output_dir / "impruver.json"
    if path.is_file() and not isinstance(read_json(path).get("impruver"), int):
        raise ImpruverError(f"{path}: not a manifest of Impruver; copy it from the trained model, or remove it")
    return (read_manifest(path) or {}).get("end_of_turn")


def saved_eos(output_dir: Path) -> list[int]:
    """The tokens that end an answer, by generation_config.json."""
    path = output_dir / "generation_config.json"
    given = read_json(path).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(number) is int for number in ids):
        raise ImpruverError(f"{path}: eos_token_id is {given!r}, neither a token's number nor a list of such")
    return ids


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, {} where there is none; ImpruverError where it is no model's."""
    path = folder / "config.json"
    config = read_json(path)
    for name, kind in CONFIG.items():
        if not isinstance(config.get(name), (kind, type(None))):
            raise ImpruverError(f"{path}: {name} is {config[name]!r}, not {SHOWN[kind]}")
    if path.is_file() and not (config.get("model_type") or config.get("architectures")):
        raise ImpruverError(f"{path}: no model's: it has no model_type; copy it from where the model was saved")
    return config


def vocabulary_of(folder: Path) -> int | None:
    """Embedding rows, by config.json."""
    config = read_config(folder)
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(rows, (int, type(None))):
        raise ImpruverError(f"{folder / 'config.json'}: vocab_size is {rows!r}, not a whole number")
    return rows
