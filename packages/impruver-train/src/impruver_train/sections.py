"""The recipe's sections that impruver-train owns: all open, their names checked against the installed libraries."""

import re
from collections.abc import Iterator
from math import inf
from typing import Any

from impruver_core.recipe.schema import open_mapping

from impruver_train.config.argument_fields import (
    OLD_NAMES,
    OURS,
    OURS_OF_LORA,
    find_faults,
    find_out_of_range,
    get_lora_fields,
    get_training_fields,
)
from impruver_train.config.hub_target import find_hub_faults
from impruver_train.config.lora_fields import find_ineffective_fields


def check_trainer(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `trainer`: names that TrainingArguments does not take, values of a wrong type, contradictions."""
    yield from find_faults(values, get_training_fields(), (*OURS, *OLD_NAMES))
    yield from find_out_of_range(values)
    yield from find_hub_faults(values)
    packing, sampling = values.get("packing"), values.get("train_sampling_strategy")
    if packing not in (None, True, False):
        yield "packing", f"{packing!r} is neither true nor false"
    if packing and (values.get("group_by_length") or sampling in ("group_by_length", "batch_rebalance")):
        yield "packing", "packs are of one length: take out train_sampling_strategy"
    if packing and values.get("use_cache"):
        yield "packing", "use_cache: true would let packed rows see each other; take it out"
    for name in ("early_stopping_patience", "samples"):
        if values.get(name) is not None and (type(values[name]) is not int or values[name] < 1):
            yield name, f"{values[name]!r} is no whole number from 1 on"
    count = values.get("imatrix_rows")
    if count is not None and (type(count) is not int or count < 0):
        yield "imatrix_rows", f"{count!r} is no whole number from 0 on"
    for name, wanted in (("class", "a dotted path such as transformers.Trainer"), ("resume_from_checkpoint", "a path")):
        if not isinstance(values.get(name), (str, bool if name != "class" else str, type(None))):
            yield name, f"{values[name]!r} is not {wanted}"


def check_ddp(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `ddp`, whose names are TrainingArguments too."""
    yield from find_faults(values, get_training_fields(), OLD_NAMES)
    yield from find_out_of_range(values)
    yield from find_hub_faults(values)


def check_lora(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `lora`: names that LoraConfig does not take, values of a wrong type."""
    yield from find_faults(values, get_lora_fields(), OURS_OF_LORA)
    ratio = values.get("loraplus_lr_ratio")
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1 <= ratio < inf):
        yield "loraplus_lr_ratio", f"{ratio!r} is no number from 1 on: learning rates of B by A, 16 for instance"
    yield from find_ineffective_fields(values)
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        yield "task_type", f"{values['task_type']!r}: what is trained is a CAUSAL_LM; leave it out"
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = values.get(name) or {}
        if not isinstance(patterns, dict):
            yield name, f"{patterns!r} is no mapping of modules to numbers"
            continue
        for pattern in patterns:
            try:
                re.compile(str(pattern))
            except re.error as error:
                yield name, f"{pattern!r} is no regular expression ({error})"
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        modules = values.get(name)
        if not all(isinstance(module, str) for module in (modules if isinstance(modules, list) else [modules or ""])):
            yield name, f"{modules!r}: modules are named by texts"
        elif isinstance(modules, str) and not _is_pattern(modules):
            yield name, f"{modules!r} is no regular expression"
        elif isinstance(modules, str) and re.fullmatch(r"[\w.]+(,\s*[\w.]+)+", modules):
            yield name, f"{modules!r} is one regular expression; several names are a list: write [{modules}]"


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


SECTIONS = {
    "lora": open_mapping(
        "`loraplus_lr_ratio` (LoRA+: how many times the learning rate of A matrices those of B have) and any field of "
        "peft.LoraConfig; left out: all weights are trained",
        True,
        check_lora,
        names=lambda: (*OURS_OF_LORA, *get_lora_fields()),
    ),
    "trainer": open_mapping(
        "`class` (a dotted path, else transformers.Trainer), `packing` (true: several rows in one sequence, none of "
        "which sees another), `early_stopping_patience` (so many evaluations without a better metric end training), "
        "`samples` (so many held-out prompts are answered at each evaluation), `imatrix_rows` (on so many training "
        "rows an importance matrix is collected in the end, with which impruver-gguf quantizes; 512 for instance), "
        "`push_to_hub` with `hub_model_id` (the finished model is uploaded) and any other field of "
        "transformers.TrainingArguments",
        check=check_trainer,
        names=lambda: (*OURS, *get_training_fields()),
    ),
    "ddp": open_mapping("merged into the training arguments", check=check_ddp),
}
