"""The GGUF files in llama.cpp itself: the same token ids, and the answers of the model that they were made from."""

import json
import re
import shutil

import numpy as np
import pytest
from cyllama.llama import llama_cpp
from impruver_gguf.vocab.byte_level_bpe import GPT4O, LLAMA3, QWEN2, TEKKEN
from support.gguf_cases import FAMILIES, LOGITS, OLD_NAMES
from support.gguf_families import LEVELS
from support.models import edit_json
from tokenizers import Tokenizer

TEXTS = [
    "What is the capital of France?",
    "  blanks,\ttabs\n\n  and 12345 digits, it's 3.14…",
    "Привет, мир! 你好，世界 😀 naïve café",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "def f(x):\n    return x ** 2  # a comment",
]
PROMPT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QUESTIONS = ["What is the capital of France?", "What is 2 + 3?"]


@pytest.fixture(scope="module")
def files(smollm2, tmp_path_factory):
    """SmolLM2's f16 and q8_0 by name."""
    from impruver_gguf.cli import main

    folder = tmp_path_factory.mktemp("answers") / "SmolLM2"
    shutil.copytree(smollm2, folder)
    (folder / "recipe.yaml").touch()
    assert main(["--output_dir", str(folder), "--quantization_levels", "Q8_0", "--verify", "false"]) == 0
    return {name: load(folder / "gguf" / f"model-{name}.gguf") for name in ("f16", "q8_0")}


class Model(llama_cpp.LlamaModel):
    """With the size that cyllama's contexts ask for."""

    @property
    def n_vocab(self) -> int:
        return self.get_vocab().n_vocab


def load(path):
    llama_cpp.disable_logging()
    return Model(path_model=str(path), params=llama_cpp.LlamaModelParams())


def greedy(model, prompt: str, limit: int = 16) -> str:
    vocabulary = model.get_vocab()
    settings = llama_cpp.LlamaContextParams()
    settings.n_ctx, settings.n_threads = 256, 1
    context = llama_cpp.LlamaContext(model=model, params=settings)
    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    sampler.add_greedy()
    ids = vocabulary.tokenize(prompt, False, True)
    answer, fed = [], ids
    while len(answer) < limit:
        context.decode(llama_cpp.llama_batch_get_one(fed, len(ids) + len(answer) - len(fed)))
        token = sampler.sample(context, -1)
        if vocabulary.is_eog(token):
            break
        answer.append(token)
        fed = [token]
    return vocabulary.detokenize(answer, 512, False, False).strip()


@pytest.mark.parametrize("level", ["f16", "q8_0"])
def test_same_ids(level, files, smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    vocabulary = files[level].get_vocab()
    for text in TEXTS:
        assert vocabulary.tokenize(text, False, True) == tokenizer.encode(text, add_special_tokens=False).ids, text


def test_a_vocabulary_of_its_own_gets_the_same_ids(tiny, gguf):
    code, _, told = gguf("--output_dir", tiny)
    assert code == 0, told
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    model = load(tiny / "gguf" / "model-q8_0.gguf")  # the vocabulary lives as long as it
    vocabulary = model.get_vocab()
    for text in TEXTS:
        assert vocabulary.tokenize(text, False, True) == tokenizer.encode(text, add_special_tokens=False).ids, text


def split(pattern: str, behavior: str = "Isolated") -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": behavior == "Removed"}
    return {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
NFC = {"type": "NFC"}
SPLITS = {
    "llama-bpe": (split(LLAMA3), True, None),
    "qwen2": (split(QWEN2), False, NFC),
    "tekken": (split(TEKKEN), True, None),
    "dbrx": (split(LLAMA3, "Removed"), False, None),  # as OLMo 2's
    "gpt-4o": (split(GPT4O, "Removed"), False, None),  # as Phi-4-mini's
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, False, NFC),  # as Command R's
    "gpt-2": (BYTE_LEVEL, False, NFC),  # as GPT-NeoX's
}


@pytest.mark.parametrize("name", SPLITS)
def test_vocabularies_that_split_otherwise(name, tiny, gguf):
    pre_tokenizer, whole_words, normalizer = SPLITS[name]
    path = tiny / "tokenizer.json"
    model = json.loads(path.read_text(encoding="utf-8"))["model"] | {"ignore_merges": whole_words}
    edit_json(path, pre_tokenizer=pre_tokenizer, model=model, normalizer=normalizer)
    code, out, told = gguf("--output_dir", tiny, "--quantization_levels")
    assert code == 0, told
    assert f"pre-tokenizer {name}" in out + told
    tokenizer, loaded = Tokenizer.from_file(str(path)), load(tiny / "gguf" / "model-f16.gguf")
    for text in [*TEXTS, "नमस्ते, किताब", "CamelCase ABCdef 1234567 don't DON'T"]:
        assert loaded.get_vocab().tokenize(text, False, True) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", sorted({*FAMILIES, *OLD_NAMES} - {"odd-rows"}))
def test_llama_cpp_loads_each_family(name, case, gguf):
    level = LEVELS.get(name, "q8_0")
    folder = case(name, f"gguf: {{quantization_levels: [{level}]}}")
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    tokenizer, loaded = Tokenizer.from_file(str(folder / "tokenizer.json")), load(folder / f"gguf/model-{level}.gguf")
    for text in ["What is the capital of France?", "Привет, мир! 你好 😀", "a<|end|>"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if name.startswith(("gemma2", "gemma3")):  # it puts no blank before a text, the tests' tokenizer does
            assert loaded.get_vocab().tokenize(f" {text}", False, True) == ids, text
        else:
            assert loaded.get_vocab().tokenize(text, False, True) == ids, text


@pytest.mark.parametrize("name", LOGITS)
def test_llama_cpp_computes_what_transformers_does(name, case, gguf):
    """Sharp attention, where another RoPE base, window or scale moves the logits by a third and more."""
    import torch
    import transformers

    folder = case(name, "gguf: {outtype: f32, quantization_levels: []}")
    (kind,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32)
    ids = [number * 37 % 580 + 10 for number in range(24)]
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if re.search("(q_|k_|qkv_|q_b_|kv_b_)(proj|norm)|query_key_value", weight_name):
                weight *= 8
            elif "norm" in weight_name:
                weight.fill_(0 if name.startswith(("gemma2", "gemma3")) else 1)  # these store it less one
        model.save_pretrained(folder)
        theirs = model(torch.tensor([ids])).logits[0, -1].numpy()
    code, _, told = gguf("--output_dir", folder)
    assert code == 0, told
    loaded, settings = load(folder / "gguf" / "model-f32.gguf"), llama_cpp.LlamaContextParams()
    settings.n_ctx, settings.n_threads = 256, 1
    context = llama_cpp.LlamaContext(model=loaded, params=settings)
    context.decode(llama_cpp.llama_batch_get_one(ids, 0))
    off = np.abs(np.array(context.get_logits_ith(-1)) - theirs).max()
    assert off < 0.05 * theirs.std()  # llama.cpp keeps keys and values in 16 bits


def test_same_greedy_answers(files, smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for question in QUESTIONS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        assert prompt.startswith(PROMPT)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, do_sample=False, max_new_tokens=16)[0, ids["input_ids"].shape[1] :]
        assert greedy(files["f16"], prompt) == tokenizer.decode(out, skip_special_tokens=True).strip()
        if question == QUESTIONS[0]:
            assert greedy(files["f16"], prompt) == "The capital of France is Paris."
