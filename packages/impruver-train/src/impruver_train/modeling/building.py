"""Builds the model that is trained: base or new, quantized, adapter, new tokens, the dtype of every weight."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.modeling.loading import (
    build_new_model,
    find_unknown_config_keys,
    load_config,
    load_model,
    resize_embeddings_if_needed,
)
from impruver_core.recipe.paths import find_local
from impruver_core.tokenizer import load_tokenizer

from impruver_train.config.precision import Precision
from impruver_train.data.packing import refuse_state
from impruver_train.modeling.checks import check_base, near_targets, unmatched
from impruver_train.modeling.chunked_loss import LogitsPath, get_plain_head
from impruver_train.modeling.logits_path import guess_logits_path, predict_logits_path
from impruver_train.modeling.model_size import Size, count

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_config(section: Any, tokenizer: Any, recipe_dir: Path | None) -> tuple[Any, int]:
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


def new_token_ids(section: Any, tokenizer: Any, model: Any, config: Any, recipe_dir: Path | None) -> list[int]:
    """Ids that the base never saw: those it has no row for, and those that the recipe's special tokens added."""
    if not model.name:
        return []
    known = config.get_text_config().vocab_size
    if section.special_tokens:
        plain = replace(section, special_tokens={}, chat_template=None)
        known = min(known, len(load_tokenizer(plain, model.name, recipe_dir=recipe_dir)))
    return list(range(known, len(tokenizer)))


def config_notes(section: Any, config: Any) -> list[str]:
    """Notes on what of `model.config` has no effect: all beside a base, else names that its class does not declare."""
    if section.name:
        return ["model.config is left out: model.name brings its own"] if section.config else []
    names = find_unknown_config_keys(config, list(section.config))
    return [f"model.config.{name}: {type(config).__name__} does not declare it; it is kept, unused" for name in names]


def check_method(section: Any, lora: dict[str, Any] | None) -> None:
    """Refuses what can't be trained: a quantized base without an adapter, and an adapter on random weights."""
    if lora is None and (section.load_in_4bit or section.load_in_8bit):
        bits = 4 if section.load_in_4bit else 8
        raise ImpruverError(
            f"model.load_in_{bits}bit: {bits}-bit weights can't be trained themselves; add a `lora` section, or leave "
            f"load_in_{bits}bit out"
        )
    if lora is not None and not section.name:
        raise ImpruverError(
            "lora: an adapter needs a base to go with it; set model.name, or leave the `lora` section out"
        )


def bits_of(section: Any) -> int | None:
    """In how many bits the `model` section has the base held; None for all of them."""
    return 4 if section.load_in_4bit else 8 if section.load_in_8bit else None


def measure(
    section: Any,
    config: Any,
    vocabulary: int,
    lora: dict[str, Any] | None,
    new_ids: list[int],
    recipe_dir: Path | None,
    packing: bool,
) -> Size:
    """Parameters of the model to be, counted on torch's meta device: no weights are loaded."""
    import torch

    logits = predict_logits_path(section, config, recipe_dir)
    tested = logits is not None
    with torch.device("meta"):
        model = build_new_model(section, deepcopy(config), torch.float32, recipe_dir)
        if model.get_output_embeddings() is None and not model.can_generate():
            raise ImpruverError(
                f"model.class: {section.class_} is no causal language model; set transformers.AutoModelForCausalLM"
            )
        if packing:
            refuse_state(model)
        if vocabulary > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        logits = logits if tested else guess_logits_path(model)
        total = sum(weight.numel() for weight in model.parameters())
        passed_over = unmatched(model, lora) if lora is not None else []
        if lora is not None:
            model = with_adapter(model, lora, new_ids, True)
    if get_plain_head(model) is None:  # an adapter's, for instance
        logits = min(logits, LogitsPath.TARGETS)
    if lora is None:
        return replace(count(model, total, total), logits=logits, logits_tested=tested)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if not trainable:
        raise ImpruverError("lora: nothing of the model would be trained; leave lora.inference_mode out")
    for text in passed_over:
        warn(text)
    return replace(count(model, trainable, total + trainable), logits=logits, logits_tested=tested)


def build_model(
    section: Any,
    config: Any,
    precision: Precision,
    arguments: Any,
    *,
    vocabulary: int,
    lora: dict[str, Any] | None,
    new_ids: list[int],
    recipe_dir: Path | None,
) -> Any:
    """The model, ready for Trainer: base or fresh, embeddings grown, frozen and adapted where `lora` asks for it."""
    from transformers import set_seed

    set_seed(arguments.seed)
    quantized = section.load_in_4bit or section.load_in_8bit
    if not section.name:
        model = build_new_model(section, config, precision.trained, recipe_dir)
    else:
        held = precision.trained if lora is None else precision.frozen
        device = str(arguments.device) if quantized else None  # Trainer moves the others itself
        model = load_model(section, held, device=device, search_dir=recipe_dir)
    resize_embeddings_if_needed(model, vocabulary)
    checkpointing = bool(getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing)
    if quantized:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif lora is not None and checkpointing:
        model.enable_input_require_grads()  # else no gradient reaches a checkpointed block of frozen weights
    if lora is None:
        return model
    model = with_adapter(model, lora, new_ids, precision.trained != precision.compute)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(precision.trained)
    return model


def with_adapter(model: Any, lora: dict[str, Any], new_ids: list[int], autocast: bool) -> Any:
    """`model` wrapped by peft with the recipe's `lora`; the embedding rows of `new_ids` are trained and saved too."""
    from peft import LoraConfig, get_peft_model

    settings = lora | {"task_type": "CAUSAL_LM"}
    saved_whole = settings.get("modules_to_save") or []
    if new_ids and not settings.get("trainable_token_indices"):
        rows = {name: new_ids for name in trained_rows(model) if name.rsplit(".", 1)[-1] not in saved_whole}
        settings["trainable_token_indices"] = rows or None
    shared = tied_output(model)
    if settings.get("trainable_token_indices") and shared in saved_whole:
        raise ImpruverError(
            f"lora.modules_to_save: {shared} shares its weights with the input embeddings, of which the rows of new "
            "tokens are trained, and peft can't do both; leave it out, or name the input embeddings there as well"
        )
    try:
        return get_peft_model(model, LoraConfig(**settings), autocast_adapter_dtype=autocast)
    except (ValueError, TypeError, ImportError, NotImplementedError, AttributeError, LookupError) as error:
        near = near_targets(model, settings.get("target_modules")) if "target" in str(error).lower() else ""
        raise ImpruverError(f"lora: {error}{near}") from error


def tied_output(model: Any) -> str | None:
    """The output embeddings' name where they share their weights with the input's."""
    output = model.get_output_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or output is None:
        return None
    return next(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is output)


def trained_rows(model: Any) -> list[str]:
    """Names of the modules that hold a row for each token: the input embeddings, and an output that is not tied."""
    parts = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings and model.get_output_embeddings() is not None:
        parts.append(model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is part for part in parts)]
