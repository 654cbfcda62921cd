"""Files of a model's folder: safetensors, GGUF, configurations, tokenizers, indexes; each broken in its own way."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.checkpoints import break_checkpoint
from fuzzing.example import Content, Example, Special
from fuzzing.mutations import BLOCKS, NUMBERS, dump_json, mutate_bytes, mutate_value, numbers, texts, values
from fuzzing.samples import CHAT, COMPOSE, GGUF, RECIPE, TRAIN, WITH_GGUF
from hypothesis import strategies as st

JSON_FILES = [
    *["config.json"] * 4,
    *["tokenizer.json"] * 4,
    *["tokenizer_config.json"] * 3,
    *["generation_config.json"] * 2,
    *["adapter_config.json"] * 4,
    *("impruver.json", "gguf/impruver.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("model.safetensors.index.json", "processor_config.json", "chat_template.json", "preprocessor_config.json"),
]
ABSENT = {  # of files that our models do not have
    "special_tokens_map.json": {"eos_token": "</s>", "additional_special_tokens": ["<|end|>"]},
    "added_tokens.json": {"<x>": 290},
    "vocab.json": {"a": 0},
    "model.safetensors.index.json": {
        "metadata": {"total_size": 9},
        "weight_map": {"lm_head.weight": "model.safetensors"},
    },
    "processor_config.json": {"processor_class": "LlamaProcessor"},
    "preprocessor_config.json": {"feature_extractor_type": "x"},
    "chat_template.json": {"chat_template": "{{ messages }}"},
}
CONFIG_KEYS = [  # with what has a meaning to transformers, peft and llama.cpp
    *("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("head_dim", "num_key_value_heads", "intermediate_size", "max_position_embeddings", "rope_parameters"),
    *("rope_scaling", "rope_theta", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "dtype", "torch_dtype"),
    *("quantization_config", "auto_map", "attn_implementation", "_attn_implementation", "bos_token_id"),
    *("eos_token_id", "pad_token_id", "text_config", "vision_config", "layer_types", "sliding_window"),
    *("tokenizer_class", "model_max_length", "chat_template", "extra_special_tokens", "added_tokens_decoder"),
    *("bos_token", "add_bos_token", "clean_up_tokenization_spaces", "padding_side", "peft_type", "r", "lora_alpha"),
    *("target_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "base_model_name_or_path"),
    *("layers_to_transform", "layers_pattern", "use_dora", "use_rslora", "init_lora_weights"),
    *("trainable_token_indices", "bias", "fan_in_fan_out", "task_type", "lora_bias", "megatron_config"),
    *("eva_config", "temperature", "top_k", "max_length", "num_beams", "stop_strings", "cache_implementation"),
    *("watermarking_config", "end_of_turn", "outputs", "recipe", "impruver", "post_processor", "normalizer"),
    *("pre_tokenizer", "decoder", "truncation", "padding", "added_tokens", "transformers_version"),
]
CONFIG_VALUES = [
    *("llama", "gpt2", "qwen3", "gemma3_text", "phi3", "mamba", "t5", "bert", "llava", "LlamaForCausalLM"),
    *("AutoModel", "T5Model", {"rope_type": "yarn", "factor": 1e9}, {"rope_type": "longrope"}),
    *({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}),
    *({"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, {"rope_type": "dynamic"}, ["LlamaForCausalLM"] * 3),
    *(["evil.Model"], "flash_attention_2", "sdpa", "nonesuch", "silu", "os.system", "bfloat16", "float8_e4m3fn"),
    *("LORA", "PREFIX_TUNING", "all-linear", ".*", "(a+)+$", "(.*)*(.*)*(.*)*(.*)*$", ["q_proj"] * 2, "eva"),
    *("pissa", "olora", "corda", True, {"q_proj": 2**31}, {"(": 1}, [2**31], -1, {"<s>": {"content": "x"}}),
    {"1": {"content": "\x1b[31m", "special": True}},
]
TOKENIZER_PARTS = [  # of tokenizer.json; each grows, loops, or is of another kind
    {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b" * 999},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 9999},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(?=(.*))(((((.*)*)*)*)*)*y"}, "content": ""},
    {"type": "Prepend", "prepend": "▁" * 99999},
    {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}] * 12,
    },
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 99}] * 99},
    {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True}] * 99},
    {"type": "Split", "pattern": {"Regex": "(?:a*)*b"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "MergedWithNext", "invert": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 9,
        "pair": [],
        "special_tokens": {},
    },
    {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99,
        "pair": [],
        "special_tokens": {},
    },
    {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 0]},
    {
        "type": "WordPiece",
        "vocab": {"a": 0},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 2**40,
    },
    {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7, "byte_fallback": True},
    {"type": "Unigram", "vocab": [["", -1.0], ["a", -1e308]], "unk_id": 0},
    {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []},
    {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": [["a", "b"]], "unk_token": "c", "fuse_unk": True},
    {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a a"], "dropout": 2.0},
    {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"], ["a", "aa"]], "dropout": 1.0},
    {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": ""},
    {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9},
    {"direction": "Left", "max_length": 2**63, "strategy": "OnlySecond", "stride": 2**63},
    {
        "strategy": {"Fixed": 2**40},
        "direction": "Right",
        "pad_to_multiple_of": 0,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    },
    {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": 2**40,
        "pad_id": 9,
        "pad_type_id": 0,
        "pad_token": "x",
    },
    {
        "id": 2**32 - 1,
        "content": "big",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    },
    {"id": 0, "content": "", "single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": False},
    {
        "id": 291,
        "content": "\x1b[31m\u202e",
        "single_word": True,
        "lstrip": True,
        "rstrip": True,
        "normalized": True,
        "special": True,
    },
    {"type": "Strip", "content": "ab", "start": 2**40, "stop": 1},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": True},
]
SPECIALS = [
    Special("link", "/dev/zero"),
    Special("link", "/dev/stdin"),
    Special("link", "nowhere"),
    Special("pipe"),
    Special("folder"),
]
QUESTIONS = {"questions.jsonl": "questions.jsonl"}
MODEL, ADAPTER = {"model": "model"} | QUESTIONS, {"model": "adapter", "base": "model"} | QUESTIONS
FROM_BASE = ("--set", "model.name=base")
USES_MODEL = [  # what reads a model's folder: the command, the files beside it
    *[(CHAT, MODEL)] * 4,
    *[((*GGUF, "--overwrite"), MODEL)] * 4,
    ((*GGUF, "--dry_run"), MODEL),
    ((*CHAT, *FROM_BASE), ADAPTER),
    ((*CHAT, *FROM_BASE), ADAPTER),
    ((*GGUF, *FROM_BASE), ADAPTER),
    ((*GGUF, *FROM_BASE), ADAPTER),
    ((*COMPOSE, "--set=tokenizer.name=model", "--set=model.name=model"), {"data.jsonl": "data.jsonl"} | MODEL),
    ((*TRAIN, "--set=model={name: model}", "--set=output_dir=new"), {"out": "out", "tokenizer": "tokenizer"} | MODEL),
]
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def build_headers(samples: Path) -> st.SearchStrategy[Example]:
    """Model folders with one or two of their files broken."""
    models = use_model(break_file(samples), samples)
    return st.one_of(models, models, models, models, models, break_checkpoint(samples))


@st.composite
def use_model(draw: st.DrawFn, broken: Callable, samples: Path) -> Example:
    """A command on a model's folder."""
    if draw(st.integers(0, 5)) == 0:
        content = draw(break_gguf((samples / "model/gguf/model-f16.gguf").read_bytes()))
        return Example("headers", "model-f16.gguf", WITH_GGUF, MODEL, {"model/gguf/model-f16.gguf": content})
    command, copies = draw(st.sampled_from(USES_MODEL))
    sample = samples / copies["model"]
    files: dict[str, Content] = {}
    for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
        name, content = draw(broken(sample))
        files[f"base/{name}" if "base" in copies and draw(st.integers(0, 3)) == 0 else f"model/{name}"] = content
    if command[0] in ("impruver-compose", "impruver-train"):
        files["recipe.yaml"] = dump_json(RECIPE)
    return Example("headers", ", ".join(sorted(files)), command, copies, files)


def break_file(samples: Path) -> Callable[[Path], st.SearchStrategy[tuple[str, Content]]]:
    """A function that gives, for a model's folder, the strategy of a file in it and what is broken in it."""

    @st.composite
    def break_one(draw: st.DrawFn, folder: Path) -> tuple[str, Content]:
        adapted = (folder / "adapter_config.json").exists()
        weights = WEIGHTS[adapted]
        kind = draw(
            st.sampled_from(("json",) * 9 + ("weights",) * 4 + ("bytes", "special", "tokenizer", "tokenizer", "card"))
        )
        if kind == "weights":
            return weights, draw(break_safetensors((folder / weights).read_bytes()))
        if kind == "tokenizer":
            return "tokenizer.json", draw(break_tokenizer(json.loads((folder / "tokenizer.json").read_text())))
        if kind == "card":
            return "README.md", b"---\n" + draw(texts).encode("utf-8", "replace") + dump_json(draw(values)) + b"\n---\n"
        name = draw(st.sampled_from([name for name in JSON_FILES if adapted or name != "adapter_config.json"]))
        if kind == "special":
            name = draw(st.sampled_from((name, weights, "chat_template.jinja", "x.bin")))
            return name, draw(st.sampled_from(SPECIALS))
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ABSENT.get(name, {"a": 1})
        if kind == "bytes":
            return name, draw(mutate_bytes(dump_json(content)))
        return name, dump_json(draw(break_settings(content)), ensure_ascii=draw(st.booleans()))

    return break_one


@st.composite
def break_settings(draw: st.DrawFn, content: dict[str, Any]) -> Any:
    """Settings with odd values under their own keys, and under those of others."""
    odd = st.one_of(values, st.sampled_from(CONFIG_VALUES), numbers)
    if draw(st.booleans()):
        return draw(mutate_value(content, 2, odd))
    keys = st.sampled_from([*content, *CONFIG_KEYS])
    return content | draw(st.dictionaries(keys, odd, min_size=1, max_size=3))


@st.composite
def break_tokenizer(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """A tokenizer.json with a part that grows, loops, or has no place there."""
    steps = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    parts = st.sampled_from((*steps, "model", "truncation", "padding", "added_tokens"))
    for name in draw(st.lists(parts, min_size=1, max_size=2)):
        part = draw(st.sampled_from(TOKENIZER_PARTS))
        content = content | {name: [*content[name], part] if name == "added_tokens" else part}
    if draw(st.booleans()):
        content = draw(mutate_value(content, 2))
    return dump_json(content)


@st.composite
def break_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with another header, another length of it, or other bytes."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    change = draw(st.sampled_from(("header", "header", "entry", "entry", "length", "bytes", "data")))
    if change == "bytes":
        return draw(mutate_bytes(content))
    if change == "data":  # NaN, infinities, nothing
        return content[: 8 + length] + draw(st.sampled_from((b"\xff", b"\x00", b"\x00\x00\x80\x7f", b""))) * (
            len(data) // 4
        )
    if change == "header":
        header = draw(mutate_value(header))
    elif change == "entry":
        name = draw(st.sampled_from([name for name in header if name != "__metadata__"]))
        entry = header[name]
        shape = draw(
            st.lists(st.sampled_from(NUMBERS), max_size=5)
            | st.just([*entry["shape"], 1])
            | st.just(entry["shape"][::-1])
        )
        dtype = draw(st.sampled_from(("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X", "")))
        offsets = draw(st.lists(st.one_of(st.integers(0, len(data)), st.sampled_from(NUMBERS)), min_size=2, max_size=2))
        header[name] = entry | draw(st.sampled_from(({"shape": shape}, {"dtype": dtype}, {"data_offsets": offsets})))
        if draw(st.integers(0, 3)) == 0:
            header[draw(texts)] = header.pop(name)
    text = dump_json(header)
    size = draw(st.sampled_from(NUMBERS).map(int)) % 2**64 if change == "length" else len(text)
    return struct.pack("<Q", size) + text + data


def find_fields(content: bytes) -> list[tuple[int, str]]:
    """Where the numbers of a GGUF header are, with their struct formats."""
    fields, at = [(4, "<I"), (8, "<Q"), (16, "<Q")], 24
    sizes = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)
    tensors, keys = struct.unpack_from("<QQ", content, 8)

    def skip_text(at: int) -> int:
        fields.append((at, "<Q"))
        return at + 8 + struct.unpack_from("<Q", content, at)[0]

    for _ in range(keys):
        at = skip_text(at)
        (kind,) = struct.unpack_from("<I", content, at)
        fields.append((at, "<I"))
        at += 4
        if kind == 8:
            at = skip_text(at)
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", content, at)
            fields.extend(((at, "<I"), (at + 4, "<Q")))
            at += 12
            for _ in range(count):
                at = skip_text(at) if inner == 8 else at + sizes[inner]
        else:
            fields.append((at, {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[sizes[kind]]))
            at += sizes[kind]
    for _ in range(tensors):
        at = skip_text(at)
        (dimensions,) = struct.unpack_from("<I", content, at)
        fields.append((at, "<I"))
        fields += [(at + 4 + 8 * number, "<Q") for number in range(dimensions)]
        at += 4 + 8 * dimensions
        fields.extend(((at, "<I"), (at + 4, "<Q")))
        at += 12
    return fields


@st.composite
def break_gguf(draw: st.DrawFn, content: bytes) -> bytes:
    """A GGUF file with other numbers in its header, or other bytes."""
    fields = find_fields(content)
    end = fields[-1][0] + 8
    if draw(st.integers(0, 2)) == 0:
        return (
            draw(mutate_bytes(content[:end], 3, [*BLOCKS, b"tokenizer.ggml.tokens", b"general.architecture"]))
            + content[end:]
        )
    few = [field for field in fields if field[1] != "<Q" or field[0] < 24 or field[0] > end - 3000] + fields[:60]
    for at, form in draw(st.lists(st.sampled_from(few), min_size=1, max_size=2)):
        number = draw(st.one_of(st.sampled_from(NUMBERS).map(int), st.integers(0, 300)))
        size = struct.calcsize(form)
        content = content[:at] + struct.pack(form, number % 2 ** (8 * size)) + content[at + size :]
    return content if draw(st.integers(0, 4)) else content[: draw(st.integers(0, len(content)))]
