"""Which methods of peft impruver-gguf merges exactly."""

from collections.abc import Mapping
from typing import Any

# Values of init_lora_weights that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA) change them.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
OTHER_METHODS = (
    *("use_qalora", "use_bdlora", "layer_replication"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)


def find_unmergeable(config: Mapping[str, Any]) -> dict[str, str]:
    """What of a LoRA configuration can't be merged exactly: keys of peft's `LoraConfig`, each with its value in words.

    `{"init_lora_weights": "pissa (it changes the base too)", "use_qalora": ""}`; {} where the merge is exact.
    """
    faults = {}
    kind, start = config.get("peft_type") or "LORA", config.get("init_lora_weights")
    if str(kind).upper() != "LORA":
        faults["peft_type"] = str(kind)
    if start not in PLAIN_STARTS:
        faults["init_lora_weights"] = f"{start} (it changes the base too)"
    return faults | {name: "" for name in OTHER_METHODS if config.get(name) not in (None, False, [])}
