"""What can be checked before any weights are loaded, each check with what to do about it."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from impruver_core.cli.console import say
from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import read_manifest
from impruver_core.files.pointer import refuse_pointer
from impruver_core.recipe.lookup import require_folder
from impruver_core.templating.tokenizer import fingerprint, template_fingerprint

from impruver_train.data import Facts


def check_base(folder: Path | None, name: str) -> None:
    """Refuses a local base that is an adapter, which transformers would put on its own base unsaid, or is pickled."""
    if folder is None:
        return
    require_folder(folder, "model.name")
    for path in (*folder.glob("*.safetensors"), *folder.glob("tokenizer.*")):
        refuse_pointer(path)
    if (folder / "adapter_config.json").exists() and not any(folder.glob("model*.safetensors")):
        raise ImpruverError(
            f"model.name: {name} is an adapter, trained on {base_of(folder)}, and no model; name that base to train a "
            "new adapter, or merge the two with peft (merge_and_unload, save_pretrained) and name the merged folder"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ImpruverError(f"model.name: {name} holds no weights; copy its *.safetensors there, or name another model")
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
        raise ImpruverError(
            f"model.name: {name}: it has no weights in safetensors; pickled ones run code when they are loaded and are "
            "refused. If you trust them, convert them once (from_pretrained, then save_pretrained) and name the new "
            "folder"
        )


def base_of(folder: Path) -> str:
    """The base of the adapter in `folder`, as its configuration names it."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another base"


def check_rows(facts: Facts, path: Path, vocabulary: int, positions: int | None) -> list[str]:
    """Refuses a file without a learnable row, ids that the model has no row for and rows longer than its positions.

    `positions` is None where the model has no limit. Returns notes.
    """
    if not facts.rows:
        raise ImpruverError(f"{path}: no rows; impruver-compose makes them")
    if facts.unlearned_rows == facts.rows:
        raise ImpruverError(
            f"{path}: nothing to learn in any of {facts.rows} rows: their labels are -100 behind the first token, or "
            "attention_mask hides every token; impruver-compose makes rows with labels"
        )
    if facts.largest_id >= vocabulary:
        raise ImpruverError(
            f"{path}, line {facts.largest_id_line}: id {facts.largest_id} is beyond the vocabulary of {vocabulary}; "
            "these rows were made with another tokenizer, or model.config.vocab_size is too small"
        )
    if positions is not None and facts.longest > positions:
        raise ImpruverError(
            f"{path}, line {facts.longest_line}: a row of {facts.longest} tokens, and the model has {positions} "
            "positions; set tokenizer.max_tokens_count and run impruver-compose again"
        )
    if not facts.unlearned_rows:
        return []
    return [
        f"{path}: {facts.unlearned_rows} rows teach nothing and are left out (the first is line {facts.unlearned_line})"
    ]


def check_data_manifest(path: Path | None, tokenizer: Any) -> dict[str, Any]:
    """The manifest of the rows in `path`, {} without one; another tokenizer or template is an ImpruverError."""
    manifest = read_manifest(path.with_name(f"{path.name}.manifest.json")) if path is not None else {}
    if manifest is None:
        say(f"note: {path} has no manifest: whether this tokenizer and template made its rows can't be checked")
        return {}
    ours = {"tokenizer": fingerprint(tokenizer), "template": template_fingerprint(tokenizer)}
    for part, name in (("tokenizer", "tokenizer"), ("template", "chat template")):
        made = (manifest.get(part) or {}).get("fingerprint")
        if made is not None and made != ours[part]:
            raise ImpruverError(
                f"{path} was made with another {name} than this recipe's; run impruver-compose with this recipe again, "
                f"or set the {name} that the rows were made with"
            )
    return manifest


# What impruver-gguf merges exactly, and the methods of peft that it does not; the first changes the base as well.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
UNMERGED = (
    *("use_qalora", "use_bdlora", "layer_replication", "target_parameters"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)


def merge_warnings(lora: dict[str, Any] | None) -> list[str]:
    """What to say of a method in `lora` that impruver-gguf can't merge exactly, before hours go into it."""
    lora = lora or {}
    other = [f"lora.{name}" for name in UNMERGED if lora.get(name)]
    start = lora.get("init_lora_weights")
    if not any(start is known or start == known for known in PLAIN_STARTS):
        other.append(f"lora.init_lora_weights: {start} (it changes the base too)")
    return [
        f"{name}: impruver-gguf can't merge such an adapter exactly; peft can (merge_and_unload, save_pretrained)"
        for name in other
    ]


def unmatched(model: Any, lora: dict[str, Any]) -> list[str]:
    """What to say of the names in `lora` that no module of `model` has; peft passes over them."""
    names = [name for name, _ in model.named_modules()]
    told = []
    for key in ("target_modules", "modules_to_save"):
        wanted = lora.get(key) if isinstance(lora.get(key), (list, tuple)) else []
        absent = [each for each in wanted if not any(f".{name}".endswith(f".{each}") for name in names)]
        if absent:
            told.append(f"lora.{key}: the model has no {', '.join(absent)}; not trained{near_targets(model, absent)}")
    for key in ("rank_pattern", "alpha_pattern"):  # whose names are regular expressions, which peft matches so
        absent = [
            each for each in lora.get(key) or {} if not any(re.match(rf"(.*\.)?({each})$", name) for name in names)
        ]
        if absent:
            told.append(f"lora.{key}: the model has no {', '.join(absent)}; passed over")
    weights = [f".{name}" for name, _ in model.named_parameters()]
    wanted = lora.get("target_parameters") or []
    absent = [each for each in wanted if not any(name.endswith(f".{each}") for name in weights)]
    if absent:
        told.append(f"lora.target_parameters: the model has no weights {', '.join(absent)}; not trained")
    return told


def near_targets(model: Any, targets: Any) -> str:
    """The model's own module names that are nearest to the targets which peft did not find."""
    import torch

    names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    names |= {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if type(part).__name__ == "Conv1D"}
    wanted = targets if isinstance(targets, (list, tuple)) else [str(targets)]
    near = {match for target in wanted for match in difflib.get_close_matches(str(target), names, n=2)}
    return f" (the model has {', '.join(sorted(near) + sorted(names - near))})" if names else ""
