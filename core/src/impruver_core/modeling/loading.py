"""Loads models: device, dtype, configuration, base in 16, 32, 8 or 4 bit, from scratch, adapter; checks the weights.

`section` below is the recipe's `model` section; torch and transformers are imported when a function needs them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.dynamic_import import allow_remote_code, check_kernel_allowed, load_object
from impruver_core.errors import ImpruverError, describe_error
from impruver_core.io.model_files import CONVERT_PICKLED, check_shards
from impruver_core.modeling.foreign_config import check_adapter_config, check_config, check_counts, check_size
from impruver_core.recipe.paths import resolve_model_path
from impruver_core.time_limit import limit_cpu_time

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

    from impruver_core.recipe.sections import ModelSection

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
CPU_BF16 = ("avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve_bf16")  # names of torch.cpu.get_capabilities
PREDICTION = "eh_proj.weight"  # a tensor of layers that predict further tokens alone
BITNET = "custom.llama."
REMOTE_CODE = "model.trust_remote_code"
CONFIG_SECONDS, BUILD_SECONDS = 5, 8  # of CPU time, to read a config.json and to build what it describes
# What transformers and what it calls raise for something that the user named.
EXPECTED = (OSError, ValueError, ImportError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
EXPECTED += (NotImplementedError, RecursionError)
EXPECTED_NAMES = {"SafetensorError", "StrictDataclassError"}  # of safetensors, and of a configuration's values


def choose_device() -> str:
    """The accelerator that torch finds (`cuda`, `mps`, `xpu`…), else `cpu`."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def has_bf16(device: str) -> bool:
    """Whether `device` computes bf16 in hardware; emulation does not count (on a CPU it is 30 times slower)."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(capabilities.get(name, False) for name in CPU_BF16)
    return device.startswith("xpu")


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype to compute in: `auto` is bf16 where `device` has it, else fp32 on a CPU and fp16 elsewhere."""
    import torch

    if name == "auto":
        name = "bf16" if has_bf16(device) else "fp32" if device == "cpu" else "fp16"
    if name not in DTYPES:
        raise ImpruverError(f"model.dtype: {name!r} is none of auto, {', '.join(DTYPES)}")
    return getattr(torch, DTYPES[name])


def load_model_class(section: ModelSection, search_dir: Path | None = None) -> type:
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


def load_config(section: ModelSection, search_dir: Path | None = None) -> PretrainedConfig:
    """The configuration of `model.name`; for a model from scratch, `config_class` filled with `config`."""
    if section.name:
        from transformers import AutoConfig

        trusted = allow_remote_code(section.trust_remote_code, REMOTE_CODE)
        with loading_errors_as_user_errors("model.name", section.name):
            source = resolve_model_path(section.name, search_dir, "model.name")
            check_config(Path(source))
            with limit_cpu_time(CONFIG_SECONDS, f"model.name: {section.name}: reading its config.json takes for ever"):
                return AutoConfig.from_pretrained(source, trust_remote_code=trusted)
    if not section.config_class:
        raise ImpruverError("model: neither `name` (a base to train) nor `config_class` and `config` (from scratch)")
    config_class = load_object(section.config_class, "model.config_class", search_dir)
    values = dict(section.config or {})
    with loading_errors_as_user_errors("model.config", section.config_class):
        return getattr(config_class, "for_model", config_class)(**values)  # for_model: AutoConfig's


def find_unknown_config_keys(config: PretrainedConfig, names: list[str]) -> list[str]:
    """Those of `names` that the class of `config` does not declare (it keeps them all the same)."""
    import inspect

    declared = {"torch_dtype", "dtype", "model_type", "architectures", *getattr(config, "attribute_map", {})}
    for class_ in type(config).__mro__:
        declared |= set(getattr(class_, "__annotations__", {}))
        declared |= set(inspect.signature(class_.__init__).parameters)
    return [name for name in names if name not in declared and not name.startswith("_")]


def build_quantization_config(section: ModelSection, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The bitsandbytes settings that `load_in_4bit` (nf4, double quantization) or `load_in_8bit` ask for, else None."""
    if not section.load_in_4bit and not section.load_in_8bit:
        return None
    from transformers import BitsAndBytesConfig

    if section.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def build_new_model(
    section: ModelSection, config: PretrainedConfig, dtype: torch.dtype, search_dir: Path | None = None
) -> PreTrainedModel:
    """A model of `config` with fresh weights in `dtype`; on torch's meta device where the caller set it."""
    check_counts(section.config, "model.config")
    model_class = load_model_class(section, search_dir)
    build = getattr(model_class, "from_config", None) or getattr(model_class, "_from_config", None)
    if build is None:
        raise ImpruverError(f"model.class: {section.class_} is no model class of transformers")
    trusted = allow_remote_code(section.trust_remote_code, REMOTE_CODE)
    extra = {"trust_remote_code": trusted} if hasattr(model_class, "from_config") else {}
    check_kernel_allowed(section.attn_implementation, "model.attn_implementation")
    if section.attn_implementation:
        extra["attn_implementation"] = section.attn_implementation
    with loading_errors_as_user_errors("model.class", section.class_):
        return build(config, dtype=dtype, **extra)


def load_model(
    section: ModelSection, dtype: torch.dtype, *, device: str | None = None, search_dir: Path | None = None
) -> PreTrainedModel:
    """The base `model.name` with its weights in `dtype`, or in 4 or 8 bit; pickled weights are refused.

    `device` is where the weights go (None: left to the caller; a quantized model then goes to the best device).
    """
    model_class = load_model_class(section, search_dir)
    trusted = allow_remote_code(section.trust_remote_code, REMOTE_CODE)
    bits = build_quantization_config(section, dtype)
    if bits is not None and device is None:
        device = choose_device()
    options = {"quantization_config": bits} if bits is not None else {}
    if device is not None:
        options["device_map"] = {"": device}
    check_kernel_allowed(section.attn_implementation, "model.attn_implementation")
    if section.attn_implementation:
        options["attn_implementation"] = section.attn_implementation
    source = resolve_model_path(section.name, search_dir, "model.name")
    for index in sorted(Path(source).glob("*.safetensors.index.json")):
        check_shards(index)  # refuses what leads out of the folder, too
    if Path(source).is_dir():
        _check_local_config(section, Path(source), search_dir)
    with loading_errors_as_user_errors("model.name", section.name):
        model, info = model_class.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trusted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_loading_info names them
            **options,
        )
    check_loading_info(model, info, section.name)
    disable_cpu_4bit_repacking(model)
    return model


def _check_local_config(section: ModelSection, folder: Path, search_dir: Path | None) -> None:
    """ImpruverError where what config.json describes is far from the weights beside it, or takes for ever to build."""
    import torch

    config = load_config(section, search_dir)
    slow = f"{folder}/config.json: the model that it describes takes too long to build; copy it again"
    with limit_cpu_time(BUILD_SECONDS, slow), torch.device("meta"):
        try:
            model = build_new_model(section, config, torch.float32, search_dir)
        except Exception:  # whoever builds it with its weights has the words for that
            return
    check_size(model, folder)


def load_adapter(
    model: PreTrainedModel, adapter_dir: str | Path, vocabulary: int | None = None, trainable: bool = False
) -> PeftModel:
    """`model` with its adapter, embeddings grown to `vocabulary` rows; ImpruverError for an adapter of another base."""
    from peft import PeftModel

    resize_embeddings_if_needed(model, vocabulary or 0)
    check_adapter_config(Path(adapter_dir), (name for name, _ in model.named_modules()))
    name = f"{adapter_dir}: adapter_config.json"
    with loading_errors_as_user_errors("adapter", name), shape_errors_as_user_errors(adapter_dir):
        adapted = PeftModel.from_pretrained(model, str(adapter_dir), is_trainable=trainable)
    check_adapter_complete(adapted, Path(adapter_dir))
    return adapted


def resize_embeddings_if_needed(model: PreTrainedModel, vocabulary: int) -> bool:
    """Gives `model` embedding rows for ids below `vocabulary`; never takes any away. True if it grew."""
    weight = model.get_input_embeddings().weight
    if vocabulary <= getattr(weight, "ds_shape", weight.shape)[0]:  # DeepSpeed leaves an empty tensor of a sharded one
        return False
    model.resize_token_embeddings(vocabulary)
    return True


@contextmanager
def loading_errors_as_user_errors(key: str, name: str) -> Iterator[None]:
    """Turns what transformers raises while it loads `name`, set by the recipe's `key`, into one ImpruverError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, EXPECTED) and EXPECTED_NAMES.isdisjoint(kind.__name__ for kind in type(error).__mro__):
            raise
        text = str(error)
        if "attn_implementation" in text or "FlashAttention" in text:
            key, name = "model", "attn_implementation"
            message = f"{describe_error(error)} Left out, the model's own is taken"
        elif "trust_remote_code" in text:
            message = "its repository brings its own code; if you trust it, set model.trust_remote_code: true"
        elif "safetensors" in text and ("no file named" in text or "does not appear to have a file named" in text):
            message = "it has no weights in safetensors; pickled weights run code when they are loaded and are refused"
            message = f"{message}; {CONVERT_PICKLED}"
        else:
            message = describe_error(error)
        raise ImpruverError(f"{key}: {name}: {message}") from error


def check_loading_info(model: PreTrainedModel, info: dict[str, Any], name: str) -> None:
    """ImpruverError where tensors of a loaded model have no weights or other shapes, or weights are unused.

    `info` is what `from_pretrained(…, output_loading_info=True)` returns.
    """
    kind, mismatched, missing = type(model).__name__, info["mismatched_keys"], info["missing_keys"]
    if mismatched:
        tensor, saved, wanted = min(mismatched)
        more = f"; {len(mismatched)} tensors do not fit" if len(mismatched) > 1 else ""
        raise ImpruverError(
            f"model.name: {name}: {tensor} is {tuple(saved)} in the weights, and {tuple(wanted)} by config.json{more}: "
            "they are not of one model; copy both again"
        )
    if missing:
        raise ImpruverError(
            f"model.name: {name}: it has no weights for {_format_names(missing)} of {kind}; they would start at "
            "random: set the model.class it was saved with, or copy config.json and weights again"
        )
    # Of a module that the model has, in another layer at least. Buffers and heads left out do no harm, nor do layers
    # after the last that predict further tokens (DeepSeek V3's, GigaChat 3's), which transformers leaves out.
    modules = {_get_module_name(tensor) for tensor, _ in model.named_parameters()}
    unexpected = info["unexpected_keys"]
    predicting = tuple(tensor.removesuffix(PREDICTION) for tensor in unexpected if tensor.endswith(PREDICTION))
    unused = [name for name in unexpected if _get_module_name(name) in modules and not name.startswith(predicting)]
    if unused:
        raise ImpruverError(
            f"model.name: {name}: by config.json {kind} has no place for {_format_names(unused)}: fewer layers, or no "
            "bias? It would not be the model that was saved; copy config.json again"
        )


def disable_cpu_4bit_repacking(model: PreTrainedModel) -> None:
    """Has 4-bit matrices on a CPU stay as they were loaded.

    Where a CPU has bf16 instructions, bitsandbytes rewrites them at the first forward pass outside of training: from
    then on they are computed in bf16, whatever the dtype, and pass no gradient on.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def _get_module_name(tensor: str) -> str:
    """The module of a tensor, the same for all layers: `model.layers.#.mlp`."""
    return re.sub(r"\d+", "#", tensor.rpartition(".")[0])


def _format_names(tensors: Collection[str]) -> str:
    """`2 tensors (a, b)`, three at most."""
    more = ", …" if len(tensors) > 3 else ""
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)} ({', '.join(sorted(tensors)[:3])}{more})"


# torch names each such tensor in a line of its own.
MISMATCH = (
    r"size mismatch for (\S+): copying a param with shape (.*?) from checkpoint.*current model is (.*?)\.?(?:\n|$)"
)


@contextmanager
def shape_errors_as_user_errors(adapter_dir: str | Path) -> Iterator[None]:
    """Turns torch's error about the shapes of an adapter's tensors into one message with the first of them."""
    try:
        yield
    except RuntimeError as error:
        mismatches = re.findall(MISMATCH, str(error))
        if not mismatches:
            raise
        name, saved, here = (text.replace("torch.Size", "") for text in mismatches[0])
        more = f" ({len(mismatches)} tensors do not fit)" if len(mismatches) > 1 else ""
        raise ImpruverError(
            f"adapter: {adapter_dir} was trained on another base, or its adapter_config.json was changed: {name} is "
            f"{saved} in it, and {here} here{more}"
        ) from error


def check_adapter_complete(model: PeftModel, adapter_dir: Path) -> None:
    """ImpruverError where `model`, with the adapter on it, has other LoRA tensors than the adapter's file."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = adapter_dir / "adapter_model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys() if "lora_" in name}  # noqa: SIM118
    here = {name: list(weight.shape) for name, weight in get_peft_model_state_dict(model).items() if "lora_" in name}
    for names, what in ((saved.keys() - here.keys(), "has no place for"), (here.keys() - saved.keys(), "also has")):
        if names:
            first = min(names)
            shape = tuple((saved | here)[first])
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            fault = f"this one {what} {first} {shape}{more}"
            raise ImpruverError(f"adapter: {adapter_dir} was trained on another base: {fault}")
