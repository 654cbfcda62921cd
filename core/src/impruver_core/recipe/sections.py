"""The table of all top-level keys with their owners, core's own sections, and those of the installed tools."""

# ruff: noqa: RUF009  (key() copies its default)
from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.schema import ListOf, OpenMapping, Scalar, fields_of, key, keys_of, scalar

GROUP = "impruver.sections"
CORE = "impruver-core"

OWNERS = {
    "output_dir": CORE,
    "train_path": CORE,
    "val_path": CORE,
    "seed": CORE,
    "tokenizer": CORE,
    "model": CORE,
    "datasets": "impruver-compose",
    "dedup": "impruver-compose",
    "split": "impruver-compose",
    "lora": "impruver-train",
    "trainer": "impruver-train",
    "ddp": "impruver-train",
    "gguf": "impruver-gguf",
    "chat": "impruver-chat",
}


@dataclass(frozen=True)
class TokenizerSection:
    """How text becomes tokens, and conversations text."""

    class_: str = key("transformers.AutoTokenizer", "class that loads the tokenizer, as a dotted path")
    name: str | None = key(None, "hub id or folder of the tokenizer; left out: model.name", local=True)
    max_tokens_count: int | None = key(
        None, "longest row in tokens, its ends counted; left out: the smaller of the tokenizer's and the model's limit"
    )
    special_tokens: dict = key(
        {}, "texts of special tokens (pad_token, bos_token, eos_token, …); they win over *_token_id"
    )
    chat_template: str | None = key(
        None, "Jinja chat template, inline or a file; left out: the tokenizer's", local=True
    )
    chat_template_kwargs: dict = key({}, "names the template reads, such as enable_thinking or date_string")
    trust_remote_code: bool = key(False, "run code of the tokenizer's repository")

    def __post_init__(self):
        if self.max_tokens_count is not None and self.max_tokens_count < 1:
            raise ValueError(f"must be at least 1, not {self.max_tokens_count}", "max_tokens_count")


@dataclass(frozen=True)
class ModelSection:
    """The model that is trained: a base by name, or a new one by config_class and config."""

    class_: str = key("transformers.AutoModelForCausalLM", "class that loads the model, as a dotted path")
    name: str | None = key(None, "hub id or folder of the base model; left out: from scratch", local=True)
    dtype: str = key("auto", "what is computed in", choices=("auto", "bf16", "fp16", "fp32"))
    load_in_4bit: bool = key(False, "hold the frozen base in 4 bit (bitsandbytes NF4)")
    load_in_8bit: bool = key(False, "hold the frozen base in 8 bit (bitsandbytes)")
    attn_implementation: str | None = key(None, "attention kernel: sdpa, eager, flash_attention_2, …")
    config_class: str | None = key(None, "configuration class of a model from scratch, as a dotted path")
    config: dict = key({}, "arguments of config_class")
    trust_remote_code: bool = key(False, "run code of the model's repository")

    def __post_init__(self):
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")


SECTIONS = {
    "output_dir": scalar(str | None, None, "folder of the trained model"),
    "train_path": scalar(str | None, None, "JSONL of training rows"),
    "val_path": scalar(str | None, None, "JSONL of validation rows"),
    "seed": scalar(int, 42, "seed of every random choice"),
    "tokenizer": TokenizerSection,
    "model": ModelSection,
}


@cache
def installed_sections() -> dict[str, Any]:
    """Top-level key -> its declaration, for core and every installed tool; the others' keys are not in it."""
    found = dict(SECTIONS)
    for entry in entry_points(group=GROUP):
        found.update(_loaded(entry))
    return found


def find_key(path: str) -> Scalar:
    """The declaration behind `seed` or `chat.top_k`; type None: open, anything goes.

    KeyError where the path names nothing, a fault of ours.
    """
    top, _, inner = path.partition(".")
    name, _, deeper = inner.partition(".")
    spec = SECTIONS[top] if top in SECTIONS else _owners_sections(OWNERS[top])[top]
    if isinstance(spec, Scalar):
        return spec
    if isinstance(spec, OpenMapping):
        return Scalar(None, None, "")
    section = spec.section if isinstance(spec, ListOf) else spec
    field = fields_of(section)[name]
    default = None if deeper or field.default is dataclasses.MISSING else field.default
    hint = None if deeper else typing.get_type_hints(section)[field.name]
    return Scalar(hint, default, field.metadata.get("help", ""), field.metadata.get("choices"))


# Names that other kits have for a key.
ELSEWHERE = {
    **dict.fromkeys(("base_model", "model_name_or_path", "model_name"), "model.name"),
    **dict.fromkeys(("sequence_len", "cutoff_len", "max_seq_length", "max_length"), "tokenizer.max_tokens_count"),
    **dict.fromkeys(("lora_r", "lora_rank"), "lora.r"),
    **dict.fromkeys(("lora_target", "lora_target_modules"), "lora.target_modules"),
    **dict.fromkeys(("val_size", "val_set_size"), "split.val_ratio"),
    "lr": "trainer.learning_rate",
    "micro_batch_size": "trainer.per_device_train_batch_size",
    "num_epochs": "trainer.num_train_epochs",
    "sample_packing": "trainer.packing",
}


def meant_by(name: str, sections: Mapping[str, Any]) -> str | None:
    """The key path that a bare name stands for: `trainer.learning_rate` for `learning_rate`, or for another kit's."""
    for top, spec in sections.items():
        if name in keys_of(spec):
            return f"{top}.0.{name}" if isinstance(spec, ListOf) else f"{top}.{name}"
    return ELSEWHERE.get(name)


def _owners_sections(owner: str) -> dict[str, Any]:
    """The sections of one package alone, so that a broken sibling can't break this tool's --help."""
    for entry in entry_points(group=GROUP):
        if entry.value.startswith(owner.replace("-", "_") + "."):
            return _loaded(entry)
    raise KeyError(f"{owner} declares no sections")


def _loaded(entry) -> dict[str, Any]:
    if entry.value == f"{__name__}:SECTIONS":
        return SECTIONS
    try:
        module, _, name = entry.value.partition(":")
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        package = entry.value.partition(".")[0].replace("_", "-")
        raise ImpruverError(
            f"{package} is installed, but its part of the recipe can't be read ({type(error).__name__}: {error}); "
            f"install it again: pip install --force-reinstall --no-deps {package}"
        ) from error
