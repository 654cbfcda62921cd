"""What of `lora` peft would pass over, or training here can't do: refused, as nobody would see that it had no effect.

Which field is read when is as in peft's own source: its LoraConfig, and the layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

from impruver_train.config.argument_fields import read_dataclass_fields

LORA_SOURCE = "tuners/lora/config.py"
UNSET = (None, False, "", [], {}, ())

# Fields that peft fills in itself, or that have an effect only when an adapter is loaded.
WRITTEN_BY_PEFT = {
    "auto_mapping": "peft writes it, of the model's class",
    "base_model_name_or_path": "peft writes it, of model.name",
    "revision": "it has no effect on training; the base is the one that model.name says",
    "inference_mode": "nothing of the model would be trained",
    "runtime_config": "it has no effect on training: it is for moving adapters of loaded models",
}
# Fields that are read only where another one has a value: that one, and which values.
SWITCHES = {
    "loftq_config": ("init_lora_weights", ("loftq",)),
    "eva_config": ("init_lora_weights", ("eva",)),
    "corda_config": ("init_lora_weights", ("corda",)),
    "lora_ga_config": ("init_lora_weights", ("lora_ga",)),
    "qalora_group_size": ("use_qalora", (True,)),
    "layers_pattern": ("layers_to_transform", None),
    "megatron_core": ("megatron_config", None),
}
DEFAULTS = {"qalora_group_size": 16, "megatron_core": "megatron.core"}
# Methods that want more than a configuration, which training here does not give them.
UNSUPPORTED_STARTS = {
    "eva": "it wants activations of the base on the data before training",
    "corda": "it wants covariances of the base on the data before training",
    "lora_ga": "it wants gradients of the base on the data before training",
}
UNSUPPORTED = {
    "megatron_config": "models of transformers have none of Megatron's layers",
    "arrow_config": "it routes between adapters that are trained already",
}
# Mappings, each with the class in peft's source whose fields it takes.
MAPPINGS = {
    "loftq_config": "LoftQConfig",
    "velora_config": "VeloraConfig",
    "kasa_config": "KasaConfig",
    "monteclora_config": "MontecloraConfig",
    "use_bdlora": "BdLoraConfig",
}
# Their keys that only losses of peft's own read (`_get_kasa_loss`, `_get_monteclora_loss`), and the defaults.
LOSS_KEYS = {
    "kasa_config": {"beta": 1e-4, "gamma": 1e-3},
    "monteclora_config": {"kl_loss_weight": 1e-5, "use_entropy": False, "dirichlet_prior": 0.1},
}


def find_ineffective_fields(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, why) for each field of `lora` that would have no effect on training; peft's defaults are none."""
    kind = values.get("peft_type")
    if kind is not None and str(kind).upper() != "LORA":
        yield "peft_type", f"{kind!r}: what is trained is LORA; leave it out"
    if values.get("peft_version") not in (None, _get_peft_version()):
        yield "peft_version", f"{values['peft_version']!r}: peft writes it, of the one that is installed; leave it out"
    for name, why in WRITTEN_BY_PEFT.items():
        if values.get(name) not in UNSET:
            yield name, f"{why}; leave it out"
    for name, why in UNSUPPORTED.items():
        if values.get(name) not in UNSET:
            yield name, f"{why}; leave it out"
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower() in UNSUPPORTED_STARTS:
        why = UNSUPPORTED_STARTS[start.lower()]
        yield "init_lora_weights", f"{start}: {why}, which is not done here; leave it out, or set pissa or orthogonal"
    yield from _find_switched_off(values)
    for name, kind in MAPPINGS.items():
        if isinstance(values.get(name), dict):
            yield from _find_unread_keys(name, values[name], kind)


def check_quantization(lora: Mapping[str, Any] | None, bits: int | None, base: Any, device: str) -> None:
    """ImpruverError for a method about quantization that this base, or this machine, can't be trained with.

    `bits`: as model.load_in_4bit and load_in_8bit say. `base`: the quantization_config of the base's own config.json.
    """
    lora = lora or {}
    method = str(getattr(base, "quant_method", None) or (base or {}).get("quant_method") or "none").rpartition(".")[2]
    if lora.get("use_qalora") and method.lower() != "gptq":
        raise ImpruverError("lora.use_qalora: peft has it for bases in GPTQ alone, and this one is none; leave it out")
    if lora.get("init_lora_weights") == "loftq" and bits is not None:
        raise ImpruverError(f"lora.init_lora_weights: loftq quantizes the base itself; leave load_in_{bits}bit out")
    if lora.get("init_lora_weights") == "loftq" and device == "cpu":
        raise ImpruverError("lora.init_lora_weights: peft quantizes for loftq on a GPU alone; leave it out")


def _find_switched_off(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields beside which the one that has them read is not set."""
    for name, (switch, on) in SWITCHES.items():
        value, state = values.get(name), values.get(switch)
        if value in UNSET or value == DEFAULTS.get(name):
            continue
        if (state in UNSET) if on is None else (state not in on):
            wanted = f"{switch}: {str(on[0]).lower()}" if on is not None else switch
            yield name, f"it is read only with lora.{wanted}; set that, or leave this out"


def _find_unread_keys(name: str, value: dict[Any, Any], kind: str) -> Iterator[tuple[str, str]]:
    """Keys of a mapping that its class in peft does not have, which peft drops unsaid, or that training never reads."""
    fields, of_loss = read_dataclass_fields("peft", LORA_SOURCE, kind), LOSS_KEYS.get(name, {})
    for key in value:
        if key not in fields:
            yield name, f"{key}: no such key of peft's {kind}{suggest(str(key), list(fields))}"
        elif value[key] not in (None, of_loss.get(key, value[key])):
            yield name, f"{key}: only a loss of peft's own reads it, and training here has another; leave it out"


def _get_peft_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # not for --help

    try:
        return version("peft")
    except PackageNotFoundError:
        return None
