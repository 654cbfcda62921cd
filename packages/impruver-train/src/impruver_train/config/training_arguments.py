"""From the recipe's `trainer` and `ddp` to transformers' TrainingArguments."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError, describe_error
from impruver_core.suggestions import suggest

from impruver_train.config.argument_fields import OURS, get_training_fields, translate_arguments
from impruver_train.config.hub_target import LEFT_OUT, list_hub_notes
from impruver_train.config.trackers import check_tracker_packages, check_trackers
from impruver_train.distributed import get_zero_stage, uses_fsdp

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

MUON = "muon"  # a value of `optim` that transformers does not have
# What transformers asks for only when the first step is near: how a value begins → module, what to install.
NEEDS = {
    "use_liger_kernel": {"True": ("liger_kernel", "liger-kernel")},
    "optim": {
        **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", '"impruver-train[torchao]"')),
        "galore": ("galore_torch", "galore-torch"),
        "apollo": ("apollo_torch", "apollo-torch"),
        **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
        "grokadamw": ("grokadamw", "grokadamw"),
        "schedule_free": ("schedulefree", "schedulefree"),
        "stable_adamw": ("optimi", "torch-optimi"),
    },
}
KNOWN_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second")  # of an evaluation by transformers' own
NOT_TAKEN = {
    "output_dir": "output_dir is a key of its own",
    "enable_jit_checkpoint": "a run that is stopped is always saved, after the optimizer's step",
}
DEFAULTS = {
    "report_to": "none",
    "project": "impruver",
    "label_names": ["labels"],
    "logging_nan_inf_filter": False,  # it would put another number in place of a NaN
}
ALWAYS = {
    "disable_tqdm": True,  # our own progress
    "push_to_hub": False,  # ours comes when all is written
    "remove_unused_columns": False,  # the rows hold nothing else
}


def build_argument_values(trainer: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What TrainingArguments gets of the recipe's `trainer` and `ddp`, over defaults of our own, and notes."""
    fields = get_training_fields()
    values, notes = translate_arguments({name: value for name, value in trainer.items() if name not in OURS}, fields)
    notes += list_hub_notes(values)
    values = {name: value for name, value in values.items() if name not in LEFT_OUT}
    for name, why in NOT_TAKEN.items():
        if values.pop(name, None) is not None:
            notes.append(f"trainer.{name} is left out: {why}")
    for name in ("", "_kwargs"):  # an old name that still works, with a warning from transformers
        old, new = f"gradient_checkpointing{name}", f"activation_checkpointing{name}"
        if new in fields and old in values:
            values.setdefault(new, values.pop(old))
    defaults = DEFAULTS | ({"metric_for_best_model": "loss"} if trainer.get("early_stopping_patience") else {})
    values = defaults | values | ALWAYS
    return {name: value for name, value in values.items() if name in fields}, notes


def load_trainer_class(class_path: str | None, recipe_dir: Path | None) -> type[Trainer]:
    """The class that `trainer.class` names, transformers' own without one; ImpruverError if it is no Trainer."""
    from transformers import Trainer

    trainer_class = load_object(class_path, "trainer.class", recipe_dir) if class_path else Trainer
    if not (isinstance(trainer_class, type) and issubclass(trainer_class, Trainer)):
        raise ImpruverError(f"trainer.class: {class_path} is no subclass of transformers.Trainer")
    return trainer_class


def check_evaluates(arguments: TrainingArguments, trainer: dict[str, Any]) -> None:
    """ImpruverError where the recipe's `trainer` asks for what comes of evaluations, and there are none."""
    wants = [name for name in ("early_stopping_patience", "samples", "load_best_model_at_end") if trainer.get(name)]
    wants += ["save_strategy: best"] if arguments.save_strategy == "best" else []
    if wants and arguments.eval_strategy == "no":
        raise ImpruverError(f"trainer.{wants[0]}: nothing is evaluated; set trainer.eval_strategy: steps")
    if trainer.get("samples") and (uses_fsdp(arguments) or get_zero_stage(arguments) == 3):
        raise ImpruverError("trainer.samples: weights that FSDP or ZeRO 3 spread answer no prompts; take it out")


def check_metric(arguments: TrainingArguments, val_names: list[str]) -> None:
    """ImpruverError for a metric that transformers' own Trainer will not have when it looks for it.

    `val_names`: of the files of validation rows where there are several.
    """
    name = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    known = [*KNOWN_METRICS, *(f"{each}_loss" for each in val_names)]
    if name not in known:
        raise ImpruverError(
            f"trainer.metric_for_best_model: {name} is no metric of transformers.Trainer, which has "
            f"{', '.join(known)}; a Trainer of your own (trainer.class) may compute more"
        )


def build_arguments(values: dict[str, Any]) -> TrainingArguments:
    """TrainingArguments; a value that transformers refuses, or a package that it lacks, is an ImpruverError."""
    values["report_to"] = values["report_to"] or "none"
    check_tracker_packages(values["report_to"])
    check_packages(values)
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        arguments = TrainingArguments(**values)
        get_reporting_integration_callbacks(arguments.report_to)  # refuses names that it does not know
    except (ValueError, TypeError, ImportError) as error:
        raise ImpruverError(f"trainer{_format_refusal(values, str(error))}") from error
    except (AttributeError, LookupError, ArithmeticError, AssertionError) as error:  # a value of another kind
        raise ImpruverError(f"trainer: a value is not of the kind that it takes: {describe_error(error)}") from error
    if arguments.max_steps == 0:
        raise ImpruverError("trainer.max_steps: 0 steps train nothing; leave it out to count in epochs")
    if arguments.max_steps <= 0 and arguments.num_train_epochs <= 0:
        raise ImpruverError(f"trainer.num_train_epochs: {arguments.num_train_epochs} epochs train nothing")
    check_keyword_arguments(arguments)
    os.environ.setdefault("WANDB_PROJECT", arguments.project)  # the one place where transformers' wandb part looks
    check_trackers(arguments)
    return arguments


def check_packages(values: dict[str, Any]) -> None:
    """ImpruverError for a package that these values need and that is not installed."""
    if values.get("deepspeed") and find_spec("deepspeed") is None:
        raise ImpruverError("trainer.deepspeed needs deepspeed: pip install deepspeed")
    for name, packages in NEEDS.items():
        value = values.get(name)
        for text in map(str, value if isinstance(value, list) else [value]):
            for start, (module, install) in packages.items():
                if text.startswith(start) and find_spec(module) is None:
                    raise ImpruverError(f"trainer.{name}: {text} needs {module}: pip install {install}")


def check_keyword_arguments(arguments: TrainingArguments) -> None:
    """ImpruverError for keywords that the scheduler or checkpointing would refuse once training starts."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers import get_scheduler

    weight = torch.zeros(1)
    name = "gradient_checkpointing_kwargs"
    try:
        checkpoint(lambda value: value, weight, **{"use_reentrant": False} | (getattr(arguments, name, None) or {}))
        name = "lr_scheduler_kwargs"
        optimizer = torch.optim.SGD([weight], lr=1.0)
        # For 10 steps, of which 1 warms up.
        get_scheduler(arguments.lr_scheduler_type, optimizer, 1, 10, arguments.lr_scheduler_kwargs or {})
    except (ValueError, TypeError) as error:
        raise ImpruverError(f"trainer.{name}: {error}") from error


def _format_refusal(values: dict[str, Any], message: str) -> str:
    """What TrainingArguments says, behind the name that it is about; of a long list the nearest."""
    value, is_choice, choices = message.partition(" is not a valid ")
    name = next((name for name, each in values.items() if str(each) == value), None)
    if not is_choice or name is None:
        return f": {message}"
    valid = re.findall("'(.*?)'", choices) + ([MUON] if name == "optim" else [])
    longer = [each for each in valid if each.startswith(value.lower())]
    return f".{name}: there is no {value}{suggest(value, longer[:1] or valid)}"
