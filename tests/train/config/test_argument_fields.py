"""The names read from sources are those of the real classes."""

import dataclasses
import math

from impruver_train.config.argument_fields import (
    GONE,
    RENAMED,
    find_out_of_range,
    get_lora_fields,
    get_training_fields,
    translate_arguments,
)


def test_names_are_those_of_the_installed_classes():
    from peft import LoraConfig
    from transformers import TrainingArguments

    assert set(get_training_fields()) == {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert {field.name for field in dataclasses.fields(LoraConfig) if field.init} <= set(get_lora_fields())


def test_old_names_are_gone_and_new_ones_there():
    fields = get_training_fields()
    assert not {*RENAMED, *GONE} & set(fields)
    assert set(RENAMED.values()) <= set(fields)


def test_warmup_ratio_gives_way_to_warmup_steps():
    fields = get_training_fields()
    assert translate_arguments({"warmup_ratio": 0.1}, fields)[0] == {"warmup_steps": 0.1}
    assert translate_arguments({"warmup_ratio": 0.1, "warmup_steps": 5}, fields)[0] == {"warmup_steps": 5}
    assert translate_arguments({"warmup_steps": 5, "warmup_ratio": 0.1}, fields)[0] == {"warmup_steps": 5}


def test_infinities_are_no_numbers():
    faults = find_out_of_range({"gradient_accumulation_steps": math.inf, "learning_rate": math.nan, "max_steps": 3})
    assert list(faults) == [("gradient_accumulation_steps", "inf is no number"), ("learning_rate", "nan is no number")]
