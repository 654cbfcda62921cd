"""Gemma 2 and 4, Ministral 3, Mistral Small 3, and the multimodal classes of Gemma 3, Gemma 4 and Mistral 3."""

from pathlib import Path

from support.models import BLOCKS, edit_json, edit_weights, make_multimodal

SMALL = {"vocab_size": 608}  # a SentencePiece vocabulary, padded
GEMMA = SMALL | {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
GEMMA3 = (
    SMALL | BLOCKS | {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "num_key_value_heads": 1}
)
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 8}
YARN |= {"beta_fast": 30.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
MINISTRAL = {"head_dim": 32, "rope_parameters": YARN, "max_position_embeddings": 128}
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


def mistral_small(folder: Path, tokenizers: dict[str, Path]) -> None:
    text = TEXT | {"model_type": "mistral", "head_dim": 32, "sliding_window": None, "rope_theta": 1e9}
    make_multimodal("Mistral3", folder, tokenizers["bytes"], "bfloat16", text, tie_word_embeddings=False)


def ministral_multimodal(folder: Path, tokenizers: dict[str, Path]) -> None:
    make_multimodal("Mistral3", folder, tokenizers["bytes"], "float16", TEXT | MINISTRAL | {"model_type": "ministral3"})


FAMILIES = {
    "gemma2": ("Gemma2", "pieces", GEMMA | {"num_hidden_layers": 3, "sliding_window": 8}, save_with_copied_head),
    "gemma2-other": (
        "Gemma2",
        "pieces",
        GEMMA
        | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "query_pre_attn_scalar": 24}
        | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3-multimodal": gemma3_multimodal,
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
    "gemma2-old": (
        "gemma2",
        {"rope_parameters": None, "layer_types": None, "rope_theta": 1e4, "cache_implementation": "hybrid"},
    ),
}
FURTHER_OUTTYPES = [("gemma2", "q8_0"), ("ministral3", "q8_0"), ("gemma3-multimodal", "bf16")]
LOGITS = ["gemma2", "ministral3", "ministral3-sp", "mistral-small"]
