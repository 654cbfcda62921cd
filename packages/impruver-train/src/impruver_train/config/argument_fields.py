"""Field names of the installed TrainingArguments and LoraConfig, read from their sources without importing them.

Importing transformers' TrainingArguments costs seconds and torch; `ast` over its file takes milliseconds.
"""

import ast
import math
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.validation import suggest

# Keys of `trainer` and `lora` that are none of TrainingArguments or LoraConfig.
OURS = ("class", "packing", "early_stopping_patience", "samples", "imatrix_rows")
OURS_OF_LORA = ("loraplus_lr_ratio",)
PLAIN = {"int": int, "float": (int, float), "bool": bool, "None": type(None)}

# Names that transformers has given up, and the ones that mean the same now.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
}

# Names that transformers has given up and that nothing is lost without.
GONE = {
    "overwrite_output_dir": "the flag --overwrite starts anew",
    "save_safetensors": "weights are always saved in safetensors",
    "logging_dir": "TensorBoard writes under output_dir, or where the variable TENSORBOARD_LOGGING_DIR says",
    **dict.fromkeys(("half_precision_backend", "fp16_backend"), "there is one backend"),
    "use_mps_device": "the device is found",
}

OLD_NAMES = {*RENAMED, *GONE, "group_by_length"}

# Numbers that transformers or torch would refuse only once training starts, or not at all: the least that works.
AT_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"), 0),
    **dict.fromkeys(("dataloader_num_workers", "seed", "data_seed", "max_grad_norm"), 0),
    "save_total_limit": 1,
}

ABOVE = dict.fromkeys(("save_steps", "eval_steps", "logging_steps"), 0)  # a share of the run, or a number of steps
BELOW = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}

CHOICES = {
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
}


@cache
def read_dataclass_fields(package: str, module: str, name: str) -> dict[str, str]:
    """Field name -> annotation of the dataclass `name` in a file of an installed package, read without an import."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImpruverError(f"{package} is not installed; pip install impruver-train")
    path = Path(next(iter(spec.submodule_search_locations))) / module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                part.target.id: ast.unparse(part.annotation).strip("'\"")
                for part in node.body
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_"
            }
    raise ImpruverError(f"{path}: class {name} is not there; this version of {package} is not known to impruver-train")


def get_training_fields() -> dict[str, str]:
    """What transformers.TrainingArguments takes."""
    return read_dataclass_fields("transformers", "training_args.py", "TrainingArguments")


def get_lora_fields() -> dict[str, str]:
    """What peft.LoraConfig takes, with the fields it inherits."""
    mixin = read_dataclass_fields("peft", "config.py", "PeftConfigMixin")
    base = read_dataclass_fields("peft", "config.py", "PeftConfig")
    return mixin | base | read_dataclass_fields("peft", "tuners/lora/config.py", "LoraConfig")


def find_faults(values: dict[str, Any], fields: dict[str, str], more: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) for each name that is neither a field nor one of `more`, and each value of a wrong type."""
    for name, value in values.items():
        if name in fields and not _is_of_type(value, fields[name]):
            quoted = isinstance(value, str) and value.replace("e-", "", 1).replace(".", "", 1).isdecimal()
            yield name, f"{value!r} is not of type {fields[name]}{'; take the quotes away' if quoted else ''}"
        elif name not in fields and name not in more:
            yield name, f"no such argument{suggest(name, [*fields, *more])}"


def find_out_of_range(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) for each training argument whose value no training can be done with."""
    for name, value in values.items():
        if isinstance(value, str) and value not in CHOICES.get(name, (value,)):
            yield name, f"{value!r} is none of {', '.join(CHOICES[name])}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            yield name, f"{value} is no number"
            continue
        if value < AT_LEAST.get(name, value):
            yield name, f"{value} is below {AT_LEAST[name]}"
        if name in ABOVE and value <= ABOVE[name]:
            yield name, f"{value} is not above {ABOVE[name]}"
        if name in BELOW and value >= BELOW[name]:
            yield name, f"{value} is not below {BELOW[name]}"


def _is_of_type(value: Any, annotation: str) -> bool:
    """Whether `value` is the number, truth value or literal that is annotated; true for other annotations."""
    if annotation.startswith("Literal["):
        return value in ast.literal_eval(annotation.removeprefix("Literal"))
    kinds = [part.strip() for part in annotation.split("|")]
    if any(kind not in PLAIN for kind in kinds):
        return True
    if isinstance(value, bool) and "bool" not in kinds:
        return False
    return any(isinstance(value, PLAIN[kind]) for kind in kinds)


def translate_arguments(values: dict[str, Any], fields: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """`values` in the names of the installed transformers, and a note for each that had to be changed."""
    now: dict[str, Any] = {}
    notes = []
    for name, value in values.items():
        if name in fields or name not in OLD_NAMES:
            now[name] = value
        elif name in GONE:
            notes.append(f"trainer.{name} is no longer an argument of transformers and is left out: {GONE[name]}")
        elif name == "group_by_length":
            if value:
                now["train_sampling_strategy"] = "group_by_length"
            notes.append("trainer.group_by_length is now trainer.train_sampling_strategy: group_by_length")
        else:
            if not (name == "warmup_ratio" and values.get("warmup_steps")):
                now.setdefault(RENAMED[name], value)
            notes.append(f"trainer.{name} is now trainer.{RENAMED[name]}")
    return now, notes
