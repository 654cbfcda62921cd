"""Recipes of the first impruver, taken as they are (EvilFreelancer/impruver at e0eda4b, MIT: first_impruver/LICENSE).

Offline, so what they name on a hub stands beside them: a name in a recipe is looked for there first.
"""

import shutil
from pathlib import Path

import pytest
from support.jsonl import write_jsonl
from support.tokenizers import train_bpe_tokenizer

HERE = Path(__file__).parent / "first_impruver"
BASE = "ai-forever/rugpt3small_based_on_gpt2"
ASKED = [
    "Где лежит Париж?",
    "Сколько будет 2 и 3?",
    "Назови цвет неба.",
    "Кто написал «Евгения Онегина»?",
    "Что тяжелее?",
]
INSTRUCTIONS = [{"instruction": text, "input": "", "output": f"Ответ {at}."} for at, text in enumerate(ASKED)]
DIALOGS = [
    {"messages": {"role": ["user", "bot"], "content": [f"{at} {text}", f"Да, {at}."]}} for at, text in enumerate(ASKED)
]
DATA = {
    "IlyaGusev/ru_turbo_alpaca": INSTRUCTIONS,
    "IlyaGusev/ru_turbo_alpaca_evol_instruct": INSTRUCTIONS,
    "lksy/ru_instruct_gpt4": INSTRUCTIONS,
    "IlyaGusev/ru_turbo_saiga": DIALOGS,
    "IlyaGusev/ru_sharegpt_cleaned": DIALOGS,
    "IlyaGusev/oasst1_ru_main_branch": DIALOGS,
}


def make_base(folder: Path) -> None:
    """A GPT-2 with a tokenizer as ruGPT-3 has it: byte-level BPE, <s> and </s>, no chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel

    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    train_bpe_tokenizer(folder, ASKED, 400, list(names.values()), model_max_length=2048, **names)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(folder)


@pytest.fixture
def beside(tmp_path):
    """The recipes, and beside them what they name."""
    for path in HERE.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    for name, rows in DATA.items():
        write_jsonl(tmp_path / name / "train.jsonl", rows)
    make_base(tmp_path / BASE)
    return tmp_path


@pytest.mark.parametrize(("recipe", "rows"), [("125M_lora_saiga2.yaml", 10), ("30M_full_alpaca.yaml", 5)])
def test_it_is_composed_and_checked_as_it_is(recipe, rows, beside, run):
    composed = run("impruver", "run", "compose_dataset", "--config", recipe)
    assert composed.returncode == 0, composed.stderr
    lines = [
        path.read_text(encoding="utf-8").splitlines() for name in ("train", "val") for path in written(beside, name)
    ]
    assert sum(map(len, lines)) == rows
    checked = run("impruver", "check", "--config", recipe)  # with the rows there, train's dry run counts and estimates
    told = checked.stdout + checked.stderr
    assert checked.returncode == 0, told
    assert all(f"impruver-{tool}" in told for tool in ("compose", "train", "gguf", "chat"))
    assert "parameters: " in told
    assert not list(beside.glob("models/*/*"))


def written(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.glob(f"{name}.*.jsonl") if "dropped" not in path.name]
