"""Small random models and adapters in transformers' and peft's own files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from support import ROOT

QUICKSTART = ROOT / "configs/impruver_configs/quickstart/tokenizer"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model", "added_tokens.json")
BLOCKS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def make_llama(folder: Path, tokenizer: Path, dtype: str = "float32", shards: str = "5GB", **config) -> None:
    """A LlamaForCausalLM of random weights (biases and norms too) with a tokenizer's files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    save_model(
        LlamaForCausalLM(LlamaConfig(**BLOCKS | {"num_key_value_heads": 2} | config)), folder, tokenizer, dtype, shards
    )


def make_model(family: str, folder: Path, tokenizer: Path, dtype: str = "bfloat16", **config) -> None:
    """A small model of another family likewise."""
    import transformers

    text_config = f"{family}TextConfig"  # of a family whose other configuration is multimodal
    configuration = getattr(transformers, text_config if hasattr(transformers, text_config) else f"{family}Config")
    sizes = BLOCKS | {"num_key_value_heads": 2, "vocab_size": 2050, "pad_token_id": None} | config
    save_model(getattr(transformers, f"{family}ForCausalLM")(configuration(**sizes)), folder, tokenizer, dtype, "5GB")


def make_multimodal(family: str, folder: Path, tokenizer: Path, dtype: str, text: dict, **config) -> None:
    """A small model of a multimodal class, whose text model `text` configures, likewise."""
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "head_dim": 16}
    configuration = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, **config)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(configuration)
    save_model(model, folder, tokenizer, dtype, "5GB")


def make_gpt2(folder: Path, tokenizer: Path, dtype: str = "float32", **config) -> None:
    """A GPT2LMHeadModel likewise; llama.cpp's script asks for n_ctx, which transformers 5 writes no more."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    save_model(GPT2LMHeadModel(GPT2Config(**sizes | config)), folder, tokenizer, dtype, "5GB")
    edit_json(folder / "config.json", n_ctx=128)


def save_model(model, folder: Path, tokenizer: Path, dtype: str, shards: str) -> None:
    """Gives a model random weights, and saves it with a tokenizer's files."""
    import torch

    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    model.tie_weights()
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shards)
    copy_tokenizer(tokenizer, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def edit_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file; None removes."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if value is not None or key not in changes}
    path.write_text(json.dumps(kept), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[dict], object]) -> None:
    """Has `change` work on the tensors of a safetensors file: numpy's arrays by name."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def save_adapter(base: Path, folder: Path, **settings) -> None:
    """A LoRA of random A and B on a base, in peft's files, with the base's tokenizer and configuration."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    rows, embeddings = settings.pop("grown_to", None), settings.pop("save_embedding_layers", False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    settings = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", "init_lora_weights": False} | settings
    model = get_peft_model(model, LoraConfig(**settings))
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder, save_embedding_layers=embeddings)
    model.config.save_pretrained(folder)
    copy_tokenizer(base, folder)


def merge_with_peft(
    base: Path,
    adapter: Path,
    folder: Path,
    grown_to: int | None = None,
    *,
    untied: bool = False,
    dtype: str = "float32",
) -> None:
    """peft's own merge of the base loaded in fp32, saved as a whole model.

    `untied`: with an output of its own first; else peft merges what changes tied embeddings into both, though it
    computes it in one.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if grown_to:
        model.resize_token_embeddings(grown_to)
    if untied:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    apart = merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight
    merged.config.tie_word_embeddings = not apart
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
    copy_tokenizer(base, folder)
