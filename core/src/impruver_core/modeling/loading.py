"""Loads models: compute dtype, configuration, base in 16, 32, 8 or 4 bit, from scratch, adapter.

`section` below is the recipe's `model` section; torch and transformers are imported when a function needs them.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError, describe_error
from impruver_core.io.model_files import CONVERT_PICKLED
from impruver_core.modeling.checkpoint_checks import (
    check_adapter_complete,
    check_loading_info,
    disable_cpu_4bit_repacking,
    shape_errors_as_user_errors,
)
from impruver_core.modeling.devices import choose_device
from impruver_core.recipe.paths import resolve_model_path

BITNET = "custom.llama."

# What transformers and what it calls raise for something that the user named.
EXPECTED = (OSError, ValueError, ImportError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
EXPECTED_NAMES = {"SafetensorError", "StrictDataclassError"}  # of safetensors, and of a configuration's values


def load_model_class(section: Any, search_dir: Path | None = None) -> type:
    """The class that `model.class` names. A `custom.*` class of the first impruver is refused with what to set."""
    try:
        return load_object(section.class_, "model.class", search_dir)
    except ImpruverError as error:
        if not section.class_.startswith("custom."):
            raise
        if section.class_.startswith(BITNET):
            way_out = (
                "it is BitNet, which transformers has no equal for; for a plain Llama, a different model, set "
                "model.class: transformers.LlamaForCausalLM and model.config_class: transformers.LlamaConfig"
            )
        else:
            way_out = (
                "transformers has no equal of it; set model.class: transformers.AutoModelForCausalLM with a model.name "
                "whose architecture transformers knows, or put the package `custom` beside the recipe"
            )
        raise ImpruverError(f"model.class: {section.class_} belongs to the first impruver: {way_out}") from error


def load_config(section: Any, search_dir: Path | None = None) -> Any:
    """The configuration of `model.name`; for a model from scratch, `config_class` filled with `config`."""
    if section.name:
        from transformers import AutoConfig

        with loading_errors_as_user_errors("model.name", section.name):
            source = resolve_model_path(section.name, search_dir, "model.name")
            return AutoConfig.from_pretrained(source, trust_remote_code=section.trust_remote_code)
    if not section.config_class:
        raise ImpruverError("model: neither `name` (a base to train) nor `config_class` and `config` (from scratch)")
    config_class = load_object(section.config_class, "model.config_class", search_dir)
    values = dict(section.config or {})
    with loading_errors_as_user_errors("model.config", section.config_class):
        return getattr(config_class, "for_model", config_class)(**values)  # for_model: AutoConfig's


def find_unknown_config_keys(config: Any, names: list[str]) -> list[str]:
    """Those of `names` that the class of `config` does not declare (it keeps them all the same)."""
    import inspect

    declared = {"torch_dtype", "dtype", "model_type", "architectures", *getattr(config, "attribute_map", {})}
    for part in type(config).__mro__:
        declared |= set(getattr(part, "__annotations__", {}))
        declared |= set(inspect.signature(part.__init__).parameters)
    return [name for name in names if name not in declared and not name.startswith("_")]


def build_quantization_config(section: Any, dtype: Any) -> Any:
    """The bitsandbytes settings that `load_in_4bit` (nf4, double quantization) or `load_in_8bit` ask for, else None."""
    if not section.load_in_4bit and not section.load_in_8bit:
        return None
    from transformers import BitsAndBytesConfig

    if section.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def build_new_model(section: Any, config: Any, dtype: Any, search_dir: Path | None = None) -> Any:
    """A model of `config` with fresh weights in `dtype`; on torch's meta device where the caller set it."""
    model_class = load_model_class(section, search_dir)
    build = getattr(model_class, "from_config", None) or getattr(model_class, "_from_config", None)
    if build is None:
        raise ImpruverError(f"model.class: {section.class_} is no model class of transformers")
    extra = {"trust_remote_code": section.trust_remote_code} if hasattr(model_class, "from_config") else {}
    if section.attn_implementation:
        extra["attn_implementation"] = section.attn_implementation
    with loading_errors_as_user_errors("model.class", section.class_):
        return build(config, dtype=dtype, **extra)


def load_model(section: Any, dtype: Any, *, device: str | None = None, search_dir: Path | None = None) -> Any:
    """The base `model.name` with its weights in `dtype`, or in 4 or 8 bit; pickled weights are refused.

    `device` is where the weights go (None: left to the caller; a quantized model then goes to the best device).
    """
    model_class = load_model_class(section, search_dir)
    bits = build_quantization_config(section, dtype)
    if bits is not None and device is None:
        device = choose_device()
    options = {"quantization_config": bits} if bits is not None else {}
    if device is not None:
        options["device_map"] = {"": device}
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    with loading_errors_as_user_errors("model.name", section.name):
        model, info = model_class.from_pretrained(
            resolve_model_path(section.name, search_dir, "model.name"),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=section.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # require_fitting tells them
            **options,
        )
    check_loading_info(model, info, section.name)
    disable_cpu_4bit_repacking(model)
    return model


def load_adapter(model: Any, adapter_dir: str | Path, vocabulary: int | None = None, trainable: bool = False) -> Any:
    """`model` with its adapter (ImpruverError for another base's), embeddings grown to `vocabulary` as in training."""
    from peft import PeftModel

    resize_embeddings_if_needed(model, vocabulary or 0)
    with (
        loading_errors_as_user_errors("adapter", f"{adapter_dir}: adapter_config.json"),
        shape_errors_as_user_errors(adapter_dir),
    ):
        adapted = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=trainable)
    check_adapter_complete(adapted, Path(adapter_dir))
    return adapted


def resize_embeddings_if_needed(model: Any, vocabulary: int) -> bool:
    """Gives `model` embedding rows for ids up to `vocabulary`; never takes any away. True if it grew."""
    weight = model.get_input_embeddings().weight
    if vocabulary <= getattr(weight, "ds_shape", weight.shape)[0]:  # DeepSpeed leaves an empty tensor of a sharded one
        return False
    model.resize_token_embeddings(vocabulary)
    return True


@contextmanager
def loading_errors_as_user_errors(key: str, name: str):
    """Turns what transformers raises while it loads `name`, given by the recipe's `key`, into one plain message."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, EXPECTED) and EXPECTED_NAMES.isdisjoint(kind.__name__ for kind in type(error).__mro__):
            raise
        text = str(error)
        if "attn_implementation" in text or "FlashAttention" in text:
            key, name, message = (
                "model",
                "attn_implementation",
                f"{describe_error(error)} Left out, the model's own is taken",
            )
        elif "trust_remote_code" in text:
            message = "its repository brings its own code; if you trust it, set model.trust_remote_code: true"
        elif "safetensors" in text and ("no file named" in text or "does not appear to have a file named" in text):
            message = (
                "it has no weights in safetensors; pickled weights run code when they are loaded and are refused; "
                + CONVERT_PICKLED
            )
        else:
            message = describe_error(error)
        raise ImpruverError(f"{key}: {name}: {message}") from error
