"""Gemma 2 and 4, Ministral 3, Mistral Small 3, and the multimodal classes of Gemma 3, Gemma 4 and Mistral 3."""

import json
from pathlib import Path

from support.models import BLOCKS, edit_json, edit_weights, make_model, make_multimodal

SMALL = {"vocab_size": 608}  # a SentencePiece vocabulary, padded
GEMMA = SMALL | {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
GEMMA3 = (
    SMALL | BLOCKS | {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "num_key_value_heads": 1}
)
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 8}
YARN |= {"beta_fast": 30.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
MINISTRAL = {"head_dim": 32, "rope_parameters": YARN, "max_position_embeddings": 128}
GEMMA4 = {"vocab_size": 603, "vocab_size_per_layer_input": 603, "head_dim": 16, "global_head_dim": 32}
GEMMA4 |= {"sliding_window": 8, "tie_word_embeddings": True}
GEMMA4_E = GEMMA4 | {"hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
GEMMA4_E |= {"layer_types": ["sliding_attention", "full_attention"] * 3, "num_hidden_layers": 6}
GEMMA4_MOE = GEMMA4 | {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2}
GEMMA4_MOE |= {"moe_intermediate_size": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
TEXT = BLOCKS | {"vocab_size": 2052, "num_key_value_heads": 2}


def save_with_copied_head(folder: Path) -> None:
    """As some tools save tied models: with the output, too."""
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.update(copy_head(tensors)))


def copy_head(tensors: dict) -> dict:
    return {"lm_head.weight": tensors["model.embed_tokens.weight"]}


def save_as_transformers_4(folder: Path) -> None:
    """Names from 4.52 on, and no word on tied ends beside text_config."""
    edit_weights(folder / "model.safetensors", rename_as_transformers_4)
    edit_json(folder / "config.json", tie_word_embeddings=None)


def rename_as_transformers_4(tensors: dict) -> None:
    for name in list(tensors):
        new = name.replace("language_model.model.", "model.language_model.")
        tensors[new if new.startswith("model.") else f"model.{new}"] = tensors.pop(name)


def gemma3_multimodal(folder: Path, tokenizers: dict[str, Path]) -> None:
    make_multimodal("Gemma3", folder, tokenizers["pieces"], "float32", GEMMA3)
    save_as_transformers_4(folder)


def as_gemma4(folder: Path) -> None:
    """A tokenizer as Gemma 4 has it: no tokenizer.model, a normalizer for blanks, visible tokens."""
    path = folder / "tokenizer.json"
    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    added.append(added[0] | {"id": 602, "content": "<|tool_call>"})
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    mark = blank | {"pattern": {"String": "\u2581"}, "content": " "}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    decoder = {"type": "Sequence", "decoders": [mark, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    edit_json(path, added_tokens=added, normalizer=blank, pre_tokenizer=split, decoder=decoder)
    special = {"extra_special_tokens": ["<ctl>", "<|tool_call>"], "tokenizer_class": "GemmaTokenizer"}
    special |= {"pad_token": "<s>", "mask_token": "<unk>", "eot_token": "<turn>", "added_tokens_decoder": None}
    edit_json(folder / "tokenizer_config.json", **special)
    for name in ("tokenizer.model", "added_tokens.json"):
        (folder / name).unlink()


def gemma4_unused_keys(folder: Path, tokenizers: dict[str, Path]) -> None:
    """The hub's files hold keys and values of layers that take those of others."""
    make_model("Gemma4", folder, tokenizers["pieces"], "float32", **GEMMA4_E | {"use_double_wide_mlp": False})
    edit_weights(folder / "model.safetensors", lambda tensors: tensors.update(copy_keys(tensors)))
    as_gemma4(folder)


def copy_keys(tensors: dict) -> dict:
    """Those of two layers before for each of the last two."""
    parts = [f"self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")]
    pairs = [(f"model.layers.{layer}.{part}", f"model.layers.{layer - 2}.{part}") for layer in (4, 5) for part in parts]
    return {name: tensors[source] for name, source in pairs}


def gemma4_multimodal(folder: Path, tokenizers: dict[str, Path]) -> None:
    text = BLOCKS | GEMMA4 | {"num_key_value_heads": 2, "hidden_size_per_layer_input": 0, "num_hidden_layers": 7}
    make_multimodal("Gemma4", folder, tokenizers["pieces"], "float32", text, audio_config=None)
    as_gemma4(folder)


def mistral_small(folder: Path, tokenizers: dict[str, Path]) -> None:
    text = TEXT | {"model_type": "mistral", "head_dim": 32, "sliding_window": None, "rope_theta": 1e9}
    make_multimodal("Mistral3", folder, tokenizers["bytes"], "bfloat16", text, tie_word_embeddings=False)


def ministral_multimodal(folder: Path, tokenizers: dict[str, Path]) -> None:
    make_multimodal("Mistral3", folder, tokenizers["bytes"], "float16", TEXT | MINISTRAL | {"model_type": "ministral3"})


HUB = {"per_layer_config": None, "global_head_dim": 32}  # what transformers 5 writes otherwise than the hub has it
FAMILIES = {
    "gemma2": ("Gemma2", "pieces", GEMMA | {"num_hidden_layers": 3, "sliding_window": 8}, save_with_copied_head),
    "gemma2-other": (
        "Gemma2",
        "pieces",
        GEMMA
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48, "query_pre_attn_scalar": 48}
        | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3-multimodal": gemma3_multimodal,
    "gemma4-e": ("Gemma4", "pieces", GEMMA4_E | {"final_logit_softcapping": 30.0}, as_gemma4),
    "gemma4-moe": ("Gemma4", "pieces", GEMMA4_MOE | {"num_hidden_layers": 6, "tie_word_embeddings": False}, as_gemma4),
    "gemma4-unused-keys": gemma4_unused_keys,
    "gemma4-multimodal": gemma4_multimodal,
    "ministral3": ("Ministral3", "bytes", MINISTRAL),
    "ministral3-sp": (
        "Ministral3",
        "pieces",
        SMALL | MINISTRAL | {"rope_parameters": YARN | {"mscale_all_dim": 0.5}, "tie_word_embeddings": True},
    ),
    "ministral3-multimodal": ministral_multimodal,
    "mistral-small": mistral_small,
}
OLD_NAMES = {
    "gemma4-hub": ("gemma4-moe", HUB | {"num_global_key_value_heads": 1}),
    "gemma4-e-hub": ("gemma4-unused-keys", HUB | {"num_global_key_value_heads": 1}),
    "gemma2-old": (
        "gemma2",
        {"rope_parameters": None, "layer_types": None, "rope_theta": 1e4, "cache_implementation": "hybrid"},
    ),
}
FURTHER_OUTTYPES = [
    *((name, "q8_0") for name in ("gemma2", "gemma4-moe", "ministral3")),
    *((name, "bf16") for name in ("gemma3-multimodal", "gemma4-e")),
]
LOGITS = ["gemma4-e", "gemma4-moe", "gemma2", "ministral3", "ministral3-sp", "mistral-small"]
