"""The GGUF files in llama.cpp itself: the same token ids, and the answers of the model that they were made from."""

import shutil

import pytest
from cyllama.llama import llama_cpp
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


def load(path):
    llama_cpp.disable_logging()
    return llama_cpp.LlamaModel(path_model=str(path), params=llama_cpp.LlamaModelParams())


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
