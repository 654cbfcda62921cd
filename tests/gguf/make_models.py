"""Small random models and adapters in transformers' and peft's own files."""

import json
import shutil
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/impruver_configs/quickstart/tokenizer"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
BLOCKS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_llama(folder: Path, tokenizer: Path, dtype: str = "float32", shards: str = "5GB", **config) -> None:
    """A LlamaForCausalLM of random weights (biases and norms too) with a tokenizer's files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _save(
        LlamaForCausalLM(LlamaConfig(**BLOCKS | {"num_key_value_heads": 2} | config)), folder, tokenizer, dtype, shards
    )


def make_gpt2(folder: Path, tokenizer: Path, dtype: str = "float32", **config) -> None:
    """A GPT2LMHeadModel likewise; llama.cpp's script asks for n_ctx, which transformers 5 writes no more."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    _save(GPT2LMHeadModel(GPT2Config(**sizes | config)), folder, tokenizer, dtype, "5GB")
    edit_json(folder / "config.json", n_ctx=128)


def _save(model, folder: Path, tokenizer: Path, dtype: str, shards: str) -> None:
    import torch

    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    model.tie_weights()
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shards)
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def edit_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file; None removes."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


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


def odd_rows(folder: Path, smollm2: Path) -> None:
    """Rows that are no multiple of 32 or 256, which several types need; values from tiny to large."""
    import torch
    from safetensors.torch import load_file, save_file

    make_llama(folder, smollm2, vocab_size=49152, hidden_size=72, intermediate_size=128)
    tensors = load_file(folder / "model.safetensors")
    for weight in tensors.values():
        weight *= torch.logspace(-30, 3, weight.shape[-1])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


CASES = {
    "llama-bf16": llama_bf16,
    "Tiny-Llama-3.2-1B-Instruct": llama3,
    "llama-old": llama_old_names,
    "gpt2-small": gpt2_fp16,
    "odd-rows": odd_rows,
}


# What is compared with llama.cpp's script, byte for byte: a case of CASES (or SmolLM2) in an outtype.
EXACT = [
    *((name, "f16") for name in CASES),
    ("SmolLM2-135M-Instruct", "f16"),
    ("llama-bf16", "bf16"),
    ("llama-old", "bf16"),
    ("Tiny-Llama-3.2-1B-Instruct", "f32"),
    ("Tiny-Llama-3.2-1B-Instruct", "q8_0"),
    ("gpt2-small", "q8_0"),
    ("odd-rows", "q8_0"),
]


def save_adapter(base: Path, folder: Path, **settings) -> None:
    """A LoRA of random A and B on a base, in peft's files, with the base's tokenizer and configuration."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    rows = settings.pop("grown_to", None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    settings = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", "init_lora_weights": False} | settings
    model = get_peft_model(model, LoraConfig(**settings))
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder, save_embedding_layers=False)
    model.config.save_pretrained(folder)
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def merge_with_peft(base: Path, adapter: Path, folder: Path, grown_to: int | None = None) -> None:
    """peft's own merge of the base loaded in fp32, saved as a whole model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if grown_to:
        model.resize_token_embeddings(grown_to)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    apart = merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight
    merged.config.tie_word_embeddings = not apart
    merged.save_pretrained(folder)
    for name in TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
