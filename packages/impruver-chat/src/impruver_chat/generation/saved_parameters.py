"""Generation parameters that were saved with a model: generation_config.json, else the keys in a GGUF file."""

from math import isfinite
from pathlib import Path
from typing import Any, get_type_hints

from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.io.json_schema import FLAG, NUMBER, WHOLE, read_json

from impruver_chat.generation.prompt import SamplingParams
from impruver_chat.sections import find_out_of_range

FILE = "generation_config.json"
TYPES = get_type_hints(SamplingParams)
JSON_TYPES = {name: {int: WHOLE, float: NUMBER, bool: FLAG}[kind] for name, kind in TYPES.items()}
GGUF_KEYS = {  # as llama.cpp's conversion writes them
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def read_saved_parameters(model_dir: Path | None, gguf: Path | None) -> dict[str, Any]:
    """Read the parameters in `model_dir`, else those in a GGUF file; ImpruverError for one that is out of range."""
    if model_dir is not None and (model_dir / FILE).exists():
        config = read_json(model_dir / FILE, JSON_TYPES)
        return _convert(config, {name: name for name in TYPES}, str(model_dir / FILE))
    return {} if gguf is None else _read_gguf_parameters(gguf)


def _read_gguf_parameters(path: Path) -> dict[str, Any]:
    try:
        values = read_gguf_header(path).values
    except ImpruverError as error:
        raise ImpruverError(f"--gguf: {error}") from error.__cause__
    numbers = {key: values[key].value for key in GGUF_KEYS if key in values}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not isfinite(value):
            raise ImpruverError(f"--gguf: {path}: {key} is no number; copy or convert it again")
    return _convert(numbers, GGUF_KEYS, f"--gguf: {path}")


def _convert(saved: dict[str, Any], names: dict[str, str], where: str) -> dict[str, Any]:
    """Convert saved values to parameters by their own names; `where` they come from begins a message."""
    # transformers takes no whole number for a float
    values = {name: TYPES[name](saved[key]) for key, name in names.items() if saved.get(key) is not None}
    keys = {name: key for key, name in names.items()}
    for name, fault in find_out_of_range(values).items():
        raise ImpruverError(f"{where}: {keys[name]} {fault}")
    return values
