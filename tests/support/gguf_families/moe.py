"""Mixtures of experts: a tensor for each expert, as checkpoints have them, and fused as inside of transformers 5."""

from pathlib import Path

QWEN3_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}


def save_fused(folder: Path) -> None:
    """The weights as transformers 5 has them in memory: stacks of experts, gates and ups in one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(folder, save_original_format=False)


FAMILIES = {
    "qwen3-moe": ("Qwen3Moe", "bytes", QWEN3_MOE | {"head_dim": 32}),
    "qwen3-moe-fused": ("Qwen3Moe", "bytes", QWEN3_MOE | {"tie_word_embeddings": True}, save_fused),
}
OLD_NAMES = {
    "qwen3-moe-old": (
        "qwen3-moe",
        {"num_local_experts": None, "num_experts": 5, "rope_parameters": None, "rope_theta": 1e6, "layer_types": None},
    ),
}
FURTHER_OUTTYPES = [("qwen3-moe", "q8_0"), ("qwen3-moe-fused", "bf16")]
LOGITS = ["qwen3-moe", "qwen3-moe-fused"]
