"""A GPT-2 folder: transformers, its GGUF with the folder's tokenizer, and the GGUF alone say the same to the blank."""

import shutil

import pytest
from support.chat_models import make_tokenizer, teach

WORDS = {"red": "  красный ,  🍎 !", "green": "do n't", "blue": "синий\n\n  👩‍👧"}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The folder, with gguf/model-f16.gguf in it."""
    import torch
    from impruver_gguf.cli import main
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2") / "model"
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=290, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2)
    teach(GPT2LMHeadModel(config), tokenizer, WORDS, steps=200).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(f"output_dir: {folder}\nmodel: {{dtype: fp32}}\n")
    assert main(["--output_dir", str(folder), "--set", "gguf.quantization_levels=[]"]) == 0
    return folder


@pytest.mark.parametrize("how", ["transformers", "gguf", "gguf alone"])
def test_it_answers_as_it_was_trained(how, gpt2, answers, recipe, tmp_path):
    flags, folder = [], gpt2
    if how != "transformers":
        flags = ["--gguf", shutil.copy(gpt2 / "gguf/model-f16.gguf", tmp_path)]
    if how == "gguf alone":
        folder = tmp_path / "nothing"
    rows, out, err = answers(
        recipe(folder), [{"prompt": word, "reference": said} for word, said in WORDS.items()], "--expect", *flags
    )
    assert [row["messages"][-1]["content"] for row in rows] == list(WORDS.values())
    assert out.startswith("right: 3 of 3")
    assert ("llama.cpp" in err) == bool(flags)
