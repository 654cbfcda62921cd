"""Measures and builds the model that is trained: base or new, quantized, adapter, new tokens, dtypes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.modeling.foreign_config import check_patterns
from impruver_core.modeling.loading import (
    build_new_model,
    find_unknown_config_keys,
    load_adapter,
    load_config,
    load_model,
    resize_embeddings_if_needed,
)
from impruver_core.recipe.paths import find_local
from impruver_core.tokenizer import load_tokenizer

from impruver_train.config.precision import Precision
from impruver_train.modeling.checks import check_base, format_near_targets, list_unmatched_names
from impruver_train.modeling.chunked_loss import LogitsPath, get_plain_head
from impruver_train.modeling.finite_weights import check_finite_base, check_finite_checkpoint
from impruver_train.modeling.logits_path import predict_logits_path
from impruver_train.modeling.packed_attention import check_packable

if TYPE_CHECKING:
    from impruver_core.recipe.sections import ModelSection, TokenizerSection
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, adapter included, and what of a step's memory depends on the modules."""

    total: int
    trainable: int
    quantizable: int = 0  # in matrices that quantization holds in fewer bits
    inputs: int = 0  # values a token that backward needs as inputs of trained matrices, in all layers
    dropped: int = 0  # of these, what passes an adapter's dropout, which keeps its mask
    every: int = 0  # inputs of all matrices, which 8-bit ones keep
    attention: str = "sdpa"
    logits: LogitsPath = LogitsPath.ALL
    logits_tested: bool = False  # on a small model of the class


def load_model_config(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase, recipe_dir: Path | None
) -> tuple[PretrainedConfig, int]:
    """The model's configuration and its vocabulary (embedding rows once the tokenizer's new tokens have theirs).

    A model from scratch takes the vocabulary and the special ids that `model.config` does not give from the tokenizer.
    """
    if section.name:
        check_base(find_local(section.name, recipe_dir), section.name)
        config = load_config(section, recipe_dir)
        return config, max(config.get_text_config().vocab_size, len(tokenizer))
    ours = {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    config = load_config(replace(section, config=ours | section.config), recipe_dir)
    if config.vocab_size < len(tokenizer):
        raise ImpruverError(
            f"model.config.vocab_size: {config.vocab_size} is below the tokenizer's {len(tokenizer)} tokens; "
            "leave it out, or give at least as many"
        )
    return config, config.vocab_size


def find_new_token_ids(
    section: TokenizerSection,
    tokenizer: PreTrainedTokenizerBase,
    base: str | None,
    config: PretrainedConfig,
    recipe_dir: Path | None,
) -> list[int]:
    """Ids that the base never saw: those it has no row for, and those that the recipe's special tokens added."""
    if not base:
        return []
    known = config.get_text_config().vocab_size
    if section.special_tokens:
        plain = replace(section, special_tokens={}, chat_template=None)
        known = min(known, len(load_tokenizer(plain, base, recipe_dir=recipe_dir)))
    return list(range(known, len(tokenizer)))


def list_config_notes(section: ModelSection, config: PretrainedConfig) -> list[str]:
    """Notes on what of `model.config` has no effect: all beside a base, else names that its class does not declare."""
    if section.name:
        return ["model.config is left out: model.name brings its own"] if section.config else []
    names = find_unknown_config_keys(config, list(section.config))
    return [f"model.config.{name}: {type(config).__name__} does not declare it; it is kept, unused" for name in names]


def measure_model(
    section: ModelSection,
    config: PretrainedConfig,
    vocabulary: int,
    lora: dict[str, Any] | None,
    new_ids: list[int],
    recipe_dir: Path | None,
    packing: bool,
) -> tuple[ModelSize, PreTrainedModel]:
    """The size of the model to be, which logits it is likely to compute, and itself on torch's meta device."""
    import torch
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = predict_logits_path(section, config, recipe_dir)
    tested = logits is not None
    with torch.device("meta"):
        model = build_new_model(section, deepcopy(config), torch.float32, recipe_dir)
        check_patterns(lora or {}, [name for name, _ in model.named_modules()], "lora")
        if model.get_output_embeddings() is None and not model.can_generate():
            raise ImpruverError(
                f"model.class: {section.class_} is no causal language model; set transformers.AutoModelForCausalLM"
            )
        if packing:
            check_packable(model)
        if vocabulary > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        if not tested:  # a guess: its forward takes the positions to keep, its loss is the usual one
            takes = "logits_to_keep" in signature(model.forward).parameters
            usual = getattr(model, "loss_function", None) is ForCausalLMLoss
            logits = LogitsPath.CHUNKED if takes and usual else LogitsPath.ALL
        trainable = total = sum(weight.numel() for weight in model.parameters())
        warnings = list_unmatched_names(model, lora) if lora is not None else []
        if lora is not None:
            start = lora.get("init_lora_weights")  # LoftQ computes with the weights, and here are none
            plain = {"init_lora_weights": True, "loftq_config": {}} if start == "loftq" else {}
            model = add_adapter(model, lora | plain, new_ids, True)
            trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
            total += trainable
    if not trainable:
        raise ImpruverError("lora: nothing of the model would be trained; leave lora.inference_mode out")
    for text in warnings:
        warn(text)
    if get_plain_head(model) is None:  # an adapter's, for instance
        logits = min(logits, LogitsPath.TARGETS)
    return replace(count_parameters(model, trainable, total), logits=logits, logits_tested=tested), model


def count_parameters(model: nn.Module, trainable: int, total: int) -> ModelSize:
    """The size of `model`, its adapter included; which logits it computes is not said yet."""
    import torch

    attention = str(model.config.get_text_config()._attn_implementation)
    linear = {name: module for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")}
    # Not those of an adapter, nor its wrapper around one of the model's own.
    matrices = {name: m for name, m in linear.items() if "lora_" not in name and not hasattr(m, "base_layer")}
    matrices = {name: module for name, module in matrices.items() if module is not model.get_output_embeddings()}
    adapted = {name: module for name, module in model.named_modules() if getattr(module, "lora_A", None)}
    dropping = {
        name: module
        for name, module in adapted.items()
        if any(isinstance(each, torch.nn.Dropout) for each in module.lora_dropout.values())
    }
    dropped = sum(module.in_features for module in dropping.values())
    trained = {name: module for name, module in matrices.items() if module.weight.requires_grad}
    inputs = dropped + _sum_input_widths(trained | {name: adapted[name] for name in adapted.keys() - dropping.keys()})
    quantizable = sum(module.weight.numel() for module in matrices.values())
    every = _sum_input_widths({name.removesuffix(".base_layer"): module for name, module in matrices.items()})
    return ModelSize(total, trainable, quantizable, inputs, dropped, every, attention)


def _sum_input_widths(matrices: dict[str, nn.Module]) -> int:
    """The widths of the inputs of `matrices`, those that several read (q, k and v do) once."""
    widths = {
        (name.rpartition(".")[0], getattr(module, "in_features", None) or module.weight.shape[0])
        for name, module in matrices.items()
    }
    return sum(width for _, width in widths)


def build_model(
    section: ModelSection,
    lora: dict[str, Any] | None,
    recipe_dir: Path | None,
    config: PretrainedConfig,
    precision: Precision,
    arguments: TrainingArguments,
    vocabulary: int,
    new_ids: list[int],
    adapter: Path | None,
) -> PreTrainedModel:
    """The model, ready for Trainer: base or fresh, embeddings grown, frozen and adapted where `lora` asks for it.

    `adapter`: the folder of one whose training goes on.
    """
    from transformers import set_seed

    set_seed(arguments.seed)
    if not section.name:
        model = build_new_model(section, config, precision.trained, recipe_dir)
    else:
        dtype = precision.trained if lora is None else precision.frozen
        device = str(arguments.device) if section.bits else None  # Trainer moves the others itself
        model = load_model(section, dtype, device=device, search_dir=recipe_dir)
        check_finite_base(model, section.name)  # first of all: whatever is computed with NaN ends elsewhere
    resize_embeddings_if_needed(model, vocabulary)
    checkpointing = bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)
    if section.bits:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif lora is not None and checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches a checkpointed block of frozen weights
    if lora is None:
        return model
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=True)
        check_finite_checkpoint(model, adapter / "adapter_model.safetensors")
    else:
        model = add_adapter(model, lora, new_ids, precision.trained != precision.compute)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(precision.trained)
    return model


def add_adapter(model: PreTrainedModel, lora: dict[str, Any], new_ids: list[int], autocast: bool) -> PreTrainedModel:
    """`model` wrapped by peft with the recipe's `lora`; the embedding rows of `new_ids` are trained and saved too."""
    from peft import LoraConfig, get_peft_model

    settings = {name: value for name, value in lora.items() if value is not None} | {"task_type": "CAUSAL_LM"}
    saved_whole = settings.get("modules_to_save") or []
    if new_ids and not settings.get("trainable_token_indices"):
        rows = {name: new_ids for name in _list_token_matrices(model) if name.rsplit(".", 1)[-1] not in saved_whole}
        settings["trainable_token_indices"] = rows or None
    shared = _find_tied_output(model)
    if settings.get("trainable_token_indices") and shared in saved_whole:
        raise ImpruverError(
            f"lora.modules_to_save: {shared} shares its weights with the input embeddings, of which the rows of new "
            "tokens are trained, and peft can't do both; leave it out, or name the input embeddings there as well"
        )
    try:
        return get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=autocast)
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError, LookupError) as error:
        near = format_near_targets(model, settings.get("target_modules")) if "target" in str(error).lower() else ""
        raise ImpruverError(f"lora: {error}{near}") from error


def _find_tied_output(model: PreTrainedModel) -> str | None:
    """The output embeddings' name where they share their weights with the input's."""
    output = model.get_output_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or output is None:
        return None
    return next(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is output)


def _list_token_matrices(model: PreTrainedModel) -> list[str]:
    """Names of the modules that hold a row for each token: the input embeddings, and an output that is not tied."""
    matrices = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings and model.get_output_embeddings() is not None:
        matrices.append(model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is matrix for matrix in matrices)]


def set_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, end_of_turn: list[str]) -> None:
    """Gives `model` the tokenizer's special ids and the generation configuration that is saved with it.

    It stops at the ends of turn and at EOS. The base's sampling values go where it does not sample: transformers would
    refuse to save them.
    """
    from transformers import GenerationConfig

    model = model.get_base_model() if hasattr(model, "peft_config") else model
    generation = getattr(model, "generation_config", None) or GenerationConfig()
    unknown = tokenizer.unk_token_id
    stops = [tokenizer.convert_tokens_to_ids(text) for text in end_of_turn] + [tokenizer.eos_token_id]
    stops = list(dict.fromkeys(number for number in stops if number is not None and number != unknown))
    generation._from_model_config = False  # else transformers may rebuild it from config.json
    generation.eos_token_id = stops or None
    config = model.config.get_text_config()
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        number, known = getattr(tokenizer, name), getattr(config, name, None)
        if number is not None and number != known and not (isinstance(known, list) and number in known):
            setattr(config, name, number)
        if number is not None and name != "eos_token_id":
            setattr(generation, name, number)
    if not generation.do_sample:
        for name in SAMPLING:
            setattr(generation, name, None)
    model.generation_config = generation
