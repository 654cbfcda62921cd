"""Models of every family that impruver-gguf knows, and a file of each for comparison with llama.cpp's own script."""

import json
from pathlib import Path
from zlib import crc32

from support import gguf_families
from support.jsonl import read_jsonl
from support.models import QUICKSTART, edit_json, make_gpt2, make_llama, make_model


def llama_bf16(folder: Path, smollm2: Path) -> None:
    make_llama(folder, smollm2, "bfloat16", vocab_size=49152, tie_word_embeddings=False)


def llama3(folder: Path, smollm2: Path) -> None:
    """RoPE as Llama 3.2 has it; several shards; what a model card and a generation config add to the header."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = {"head_dim": 128, "max_position_embeddings": 131072, "attention_bias": True}
    make_llama(folder, smollm2, shards="7MB", vocab_size=49200, rope_parameters=rope, tie_word_embeddings=True, **sizes)
    edit_json(folder / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=True)
    card = "---\nlicense: mit\nbase_model: someone/Some-1B-Base\nlanguage: [en, ru]\ndatasets: [a/b]\n---\n# A card\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    edit_json(folder / "config.json", head_dim=128)
    edit_json(folder / "tokenizer_config.json", add_prefix_space=False)


def llama_old_names(folder: Path, smollm2: Path) -> None:
    """As transformers 4 wrote it: rope_theta and rope_scaling outside rope_parameters, no head_dim."""
    make_llama(folder, smollm2, "float16", vocab_size=49152)
    scaling = {"type": "linear", "factor": 2.0}
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=20000.0, rope_scaling=scaling, head_dim=None)


def gpt2_fp16(folder: Path, smollm2: Path) -> None:
    make_gpt2(folder, smollm2, "float16", vocab_size=49152)


def odd_rows(folder: Path, tokenizers: dict[str, Path]) -> None:
    """Rows that are no multiple of 32 or 256, which several types need; values from tiny to large."""
    import torch
    from safetensors.torch import load_file, save_file

    make_llama(folder, tokenizers["bytes"], vocab_size=2050, hidden_size=72, intermediate_size=128)
    tensors = load_file(folder / "model.safetensors")
    for weight in tensors.values():
        weight *= torch.logspace(-30, 3, weight.shape[-1])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def save_byte_level(folder: Path) -> Path:
    """The quickstart's tokenizer with a token that transformers adds to some families' where it is not there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    tokenizer.save_pretrained(folder)
    return folder


def train_sentencepiece(folder: Path, *, hub: bool = True) -> Path:
    """A small SentencePiece tokenizer as a base has it on the hub, or as transformers 5 saves it again (no model)."""
    from sentencepiece import SentencePieceTrainer
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    lines = (QUICKSTART.parent / "countries.jsonl").read_text(encoding="utf-8").splitlines()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["<turn>", "▁▁"],
        control_symbols=["<ctl>"],
        minloglevel=2,
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    settings = {"tokenizer_class": "LlamaTokenizer", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|end|>", "<more>"])
    tokenizer.save_pretrained(folder)
    if hub:
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        settings["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "added_tokens.json").write_text(json.dumps({"<more>": 601}), encoding="utf-8")
    else:
        (folder / "tokenizer.model").unlink()
    return folder


QWEN3_ROPE = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
PHI3_ROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + number / 7 for number in range(6)],
    "short_factor": [1.0 + number / 70 for number in range(6)],
    "partial_rotary_factor": 0.75,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512, "num_hidden_layers": 7}
SMALL = {"vocab_size": 608}  # a SentencePiece vocabulary, padded
# Name → family, tokenizer, configuration; more of them are in gguf_families.
# (In a model called phi3 llama.cpp asks for Phi-3's own special tokens.)
FAMILIES = {
    "qwen2": ("Qwen2", "bytes", {"tie_word_embeddings": True}),
    "qwen2-head": ("Qwen2", "bytes", {"head_dim": 16, "sliding_window": 64, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", "bytes", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": ("Qwen3", "bytes", {"rope_parameters": QWEN3_ROPE}),
    "mistral": ("Mistral", "bytes", {"head_dim": 32, "sliding_window": None, "tie_word_embeddings": True}),
    "mistral-sp": ("Mistral", "pieces", SMALL | {"sliding_window": 4096}),
    "smollm3": ("SmolLM3", "bytes", {"num_hidden_layers": 5, "rope_theta": 5e6}),
    "smollm3-untied": (
        "SmolLM3",
        "bytes",
        {"tie_word_embeddings": False, "max_position_embeddings": 65536},
    ),
    "phi-sp": ("Phi3", "pieces", SMALL | {"sliding_window": 2047}),
    "phi-long": (
        "Phi3",
        "pieces",
        SMALL | {"max_position_embeddings": 131072, "rope_parameters": PHI3_ROPE, "tie_word_embeddings": True},
    ),
    "gemma3-sp": ("Gemma3", "pieces", SMALL | GEMMA3),
    "gemma3-linear": (
        "Gemma3",
        "pieces",
        SMALL
        | GEMMA3
        | {"tie_word_embeddings": False, "rope_parameters": GEMMA3_ROPE, "final_logit_softcapping": 30.0},
    ),
    "llama-sp": ("Llama", "pieces", {"vocab_size": 602, "attention_bias": True, "mlp_bias": True}),
    "odd-rows": odd_rows,
} | gguf_families.FAMILIES


# Name → a key of FAMILIES, and config.json's keys as transformers 4 wrote them.
OLD_NAMES = {
    "qwen2-old": (
        "qwen2",
        {
            "rope_parameters": None,
            "layer_types": None,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
    ),
    "phi-old": (
        "phi-long",
        {
            "rope_parameters": None,
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 8192,
            "rope_scaling": {"type": "longrope"} | {key: PHI3_ROPE[key] for key in ("long_factor", "short_factor")},
        },
    ),
    "gemma3-old": (
        "gemma3-sp",
        {
            "rope_parameters": None,
            "layer_types": None,
            "rope_theta": 5e5,
            "rope_local_base_freq": 2e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 6,
        },
    ),
    "smollm3-old": ("smollm3", {"rope_parameters": None, "no_rope_layers": None, "layer_types": None}),
} | gguf_families.OLD_NAMES
# Whose logits in llama.cpp are compared with transformers'.
LOGITS = ["gemma3-sp", "llama-sp", "mistral", "phi-long", "qwen2", "qwen3", "smollm3", *gguf_families.LOGITS]


def make_family(name: str, folder: Path, tokenizers: dict[str, Path]) -> None:
    """A model of FAMILIES or OLD_NAMES; about each third in another type of weights."""
    if name in OLD_NAMES:
        name, changes = OLD_NAMES[name]
        make_family(name, folder, tokenizers)
        edit_json(folder / "config.json", **changes)
        return
    if callable(FAMILIES[name]):
        FAMILIES[name](folder, tokenizers)
        return
    family, tokenizer, config, *edits = FAMILIES[name]
    dtype = ("bfloat16", "float16", "float32")[crc32(name.encode()) % 3]
    make_model(family, folder, tokenizers[tokenizer], dtype, **config)
    for edit in edits:
        edit(folder)


def export_tensors(gguf, folder, outtype="f32"):
    """The tensors of a folder's file, and what was said."""
    from gguf import GGUFReader

    code, _, told = gguf("--output_dir", folder, "--set", f"gguf.outtype={outtype}", "--quantization_levels")
    assert code == 0, told
    reader = GGUFReader(folder / f"gguf/model-{outtype}.gguf")
    return {tensor.name: tensor.data for tensor in reader.tensors}, told


def assert_same_tensors(ours, theirs):
    """Equal but for the order in which float32 sums are rounded."""
    import numpy as np

    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.allclose(ours[name], values, rtol=1e-6, atol=1e-7), name


def read_quality(folder: Path) -> dict[str, dict]:
    """The rows of an export's quality.jsonl by their level."""
    return {row["level"]: row for row in read_jsonl(folder / "gguf/quality.jsonl")}


CASES = {
    "llama-bf16": llama_bf16,
    "Tiny-Llama-3.2-1B-Instruct": llama3,
    "llama-old": llama_old_names,
    "gpt2-small": gpt2_fp16,
}
# What is compared with llama.cpp's script, byte for byte: a case of CASES (or SmolLM2) in an outtype.
EXACT = [
    *((name, "f16") for name in (*CASES, *FAMILIES, *OLD_NAMES)),
    ("SmolLM2-135M-Instruct", "f16"),
    ("llama-bf16", "bf16"),
    ("Tiny-Llama-3.2-1B-Instruct", "f32"),
    ("gpt2-small", "q8_0"),
    ("odd-rows", "q8_0"),
    ("gemma3-sp", "q8_0"),
    ("phi-long", "bf16"),
    *gguf_families.FURTHER_OUTTYPES,
]
