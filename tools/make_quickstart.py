"""Make the quickstart's data: questions about countries, and a tokenizer trained on them.

    uv run python tools/make_quickstart.py [FOLDER]     default: configs/impruver_configs/quickstart

Writes FOLDER/countries.jsonl (columns `instruction`, `output`) and FOLDER/tokenizer/ (a byte-level BPE for
AutoTokenizer), the same bytes on every run. The facts stand in quickstart_countries.csv. Each is asked in English and
in Russian in eight ways that are no near-duplicates of each other, so that a question held out can be answered from
the others. Some rows come twice, as another user would type them, so that near-dedup has something to find.
"""

import csv
import json
import random
import sys
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "configs" / "impruver_configs" / "quickstart"
SEED = 42
NEAR_DUPLICATE_SHARE = 0.15
VOCAB_SIZE = 2048
CONTEXT_TOKENS = 512
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<|im_end|>"}
TURN_START = "<|im_start|>"

# Standard ChatML, which llama.cpp and Ollama know by sight.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

# {c}: the country; {C}: the same at the start of a sentence.
ENGLISH = {
    "The capital of {c} is {capital_en}.": (
        "What is the capital of {c}?",
        "Name the capital city of {c}.",
        "What is the capital city of {c} called?",
        "Tell me which capital {c} has.",
        "I forgot the capital of {c}, remind me.",
        "Do you happen to know the capital of {c}?",
        "Capital of {c}?",
        "Quiz question: which city is the capital of {c}?",
    ),
    "The currency of {c} is the {currency_en}.": (
        "What is the currency of {c}?",
        "Which currency is used in {c}?",
        "What money do people pay with in {c}?",
        "Name the official currency of {c}.",
        "I am flying to {c}, what currency do I need?",
        "Tell me which currency {c} uses.",
        "Currency of {c}?",
        "Shopping in {c}, what currency will I pay in?",
    ),
    "{C} is in {continent}.": (
        "What continent is {c} in?",
        "On which continent can I find {c}?",
        "Which part of the world does {c} belong to?",
        "Where in the world is {c}?",
        "Name the continent of {c}.",
        "Tell me what continent {c} is part of.",
        "Continent of {c}?",
        "Help me with geography: {c}, which continent?",
    ),
}
# {ru}: nominative, {ru_of}: genitive, {ru_in}: with its preposition; {is_found} and the like agree with it in number.
RUSSIAN = {
    "Столица {ru_of} — {capital_ru}.": (
        "Какая столица у {ru_of}?",
        "Назови столицу {ru_of}.",
        "Как называется столица {ru_of}?",
        "Какой город является столицей {ru_of}?",
        "Напомни мне столицу {ru_of}, пожалуйста.",
        "Столица {ru_of} — это какой город?",
        "Столица {ru_of}?",
        "Вопрос викторины: столица {ru_of}?",
    ),
    "Валюта {ru_of} — {currency_ru}.": (
        "Какая валюта у {ru_of}?",
        "Назови валюту {ru_of}.",
        "Какими деньгами платят {ru_in}?",
        "В какой валюте указаны цены {ru_in}?",
        "Подскажи туристу валюту {ru_of}.",
        "Как называется денежная единица {ru_of}?",
        "Валюта {ru_of}?",
        "Скажи мне, какая валюта в ходу {ru_in}.",
    ),
    "{ru} {is_found} в {continent_ru}.": (
        "На каком континенте {is_found} {ru}?",
        "В какой части света {lies} {ru}?",
        "К какому континенту {belongs} {ru}?",
        "Вопрос викторины: где {is_found} {ru}?",
        "Подскажи, какая часть света — {ru}?",
        "Помоги: {ru} — какой это континент?",
        "Континент, где {is_found} {ru}?",
        "Где {is_found} {ru}?",
    ),
}
CONTINENTS_RU = {
    "Europe": "Европе",
    "Asia": "Азии",
    "Europe and Asia": "Европе и Азии",
    "Africa": "Африке",
    "North America": "Северной Америке",
    "South America": "Южной Америке",
    "Oceania": "Океании",
}
VERBS = {
    "one": {"is_found": "находится", "lies": "лежит", "belongs": "относится"},
    "many": {"is_found": "находятся", "lies": "лежат", "belongs": "относятся"},
}
GREETINGS = {"en": ("Hi!", "Hello!", "Hey,"), "ru": ("Привет!", "Здравствуйте!", "Слушай,")}


def read_countries() -> list[dict[str, str]]:
    """The facts, one dict a country, with every form that the sentences above name."""
    with (HERE / "quickstart_countries.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= VERBS[row["number"]] | {"continent_ru": CONTINENTS_RU[row["continent"]]}
        row |= {"c": row["en"], "C": row["en"][0].upper() + row["en"][1:]}
    return rows


def make_rows(countries: list[dict[str, str]], seed: int = SEED) -> list[dict[str, str]]:
    """Every question about every country with its answer, near-duplicates among them, shuffled."""
    rng = random.Random(seed)
    rows = []
    for country, (language, sentences) in product(countries, (("en", ENGLISH), ("ru", RUSSIAN))):
        for answer, questions in sentences.items():
            for question in questions:
                row = {"instruction": question.format_map(country), "output": answer.format_map(country)}
                rows.append(row)
                if rng.random() < NEAR_DUPLICATE_SHARE:
                    rows.append(row | {"instruction": rewrite(row["instruction"], language, rng)})
    rng.shuffle(rows)
    return rows


def rewrite(question: str, language: str, rng: random.Random) -> str:
    """The same question as another user would type it."""
    lower = question[0].lower() + question[1:]  # the one that stays nearest by tokens, so the most frequent one
    return rng.choice((lower, lower, lower, f"{rng.choice(GREETINGS[language])} {question}", question.rstrip("?.")))


def train_tokenizer(rows: list[dict[str, str]]) -> Tokenizer:
    """A byte-level BPE with GPT-2's splitting and no normalizer: any text comes back as it went in."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL_TOKENS.values(), TURN_START]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The roles are in every rendered conversation, so they deserve a token each.
    texts = [text for row in rows for text in row.values()] + ["system", "user", "assistant"] * 100
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save as transformers (4 and 5) and llama.cpp read it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def make(folder: Path) -> None:
    """Write the data and the tokenizer under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows(read_countries())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "countries.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    write_tokenizer(train_tokenizer(rows), folder / "tokenizer")
    print(f"{len(rows)} rows and a tokenizer in {folder}")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
