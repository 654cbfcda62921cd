"""All top-level keys of a recipe with their owners, and core's own sections."""

# ruff: noqa: RUF009  (key() copies its default)
from dataclasses import dataclass

from impruver_core.recipe.schema import key, scalar

OWNERS = {
    **dict.fromkeys(("output_dir", "train_path", "val_path", "seed", "tokenizer", "model"), "impruver-core"),
    **dict.fromkeys(("datasets", "dedup", "split", "decontaminate", "compose"), "impruver-compose"),
    **dict.fromkeys(("lora", "trainer", "ddp"), "impruver-train"),
    "gguf": "impruver-gguf",
    "chat": "impruver-chat",
}


FURTHER_TOKENS = ("additional_special_tokens", "extra_special_tokens")  # lists, among the special tokens
CONTROL_TEXT = ("text", "refuse", "keep")  # what is done with text of the data that is a special token's


@dataclass(frozen=True)
class TokenizerSection:
    """How text becomes tokens, and conversations text."""

    class_: str = key("transformers.AutoTokenizer", "class that loads the tokenizer, as a dotted path")
    name: str | None = key(None, "hub id or folder of the tokenizer; left out: model.name", local=True)
    max_tokens_count: int | None = key(
        None, "longest row in tokens, its ends counted; left out: the smaller of the tokenizer's and the model's limit"
    )
    special_tokens: dict = key(
        {}, "texts of special tokens (pad_token, bos_token, eos_token, …); they win over *_token_id"
    )
    chat_template: str | None = key(
        None, "Jinja chat template, inline or a file; left out: the tokenizer's", local=True
    )
    chat_template_kwargs: dict = key({}, "names the template reads, such as enable_thinking or date_string")
    control_text: str = key(
        "text",
        "text of the data that is a special token's, such as <|im_end|>; text: it is encoded as ordinary text, refuse: "
        "the row is dropped, keep: it becomes the token",
        choices=CONTROL_TEXT,
    )
    trust_remote_code: bool = key(False, "run code of the tokenizer's repository")

    @property
    def own_tokens(self) -> tuple[str, ...]:
        """The special tokens that the recipe adds for its data."""
        lists = (self.special_tokens.get(name) for name in FURTHER_TOKENS)
        return tuple(str(token) for each in lists if isinstance(each, (list, tuple)) for token in each)

    def __post_init__(self):
        if self.max_tokens_count is not None and self.max_tokens_count < 1:
            raise ValueError(f"must be at least 1, not {self.max_tokens_count}", "max_tokens_count")


@dataclass(frozen=True)
class ModelSection:
    """The model that is trained: a base by name, or a new one by config_class and config."""

    class_: str = key("transformers.AutoModelForCausalLM", "class that loads the model, as a dotted path")
    name: str | None = key(None, "hub id or folder of the base model; left out: from scratch", local=True)
    dtype: str = key("auto", "what is computed in", choices=("auto", "bf16", "fp16", "fp32"))
    load_in_4bit: bool = key(False, "hold the frozen base in 4 bit (bitsandbytes NF4)")
    load_in_8bit: bool = key(False, "hold the frozen base in 8 bit (bitsandbytes)")
    attn_implementation: str | None = key(None, "attention kernel: sdpa, eager, flash_attention_2, …")
    config_class: str | None = key(None, "configuration class of a model from scratch, as a dotted path")
    config: dict = key({}, "arguments of config_class")
    trust_remote_code: bool = key(False, "run code of the model's repository")

    def __post_init__(self):
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other")

    @property
    def bits(self) -> int | None:
        """4 or 8 where the frozen base is held in so many bits."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


SECTIONS = {
    "output_dir": scalar(str | None, None, "folder of the trained model"),
    "train_path": scalar(str | None, None, "JSONL of training rows: a file, or a folder (`./train/`) of parts"),
    "val_path": scalar(
        str | list[str] | dict[str, str] | None,
        None,
        "JSONL of validation rows, as train_path; of several, as a list or a mapping of names, impruver-compose writes "
        "the first",
    ),
    "seed": scalar(int, 42, "seed of every random choice"),
    "tokenizer": TokenizerSection,
    "model": ModelSection,
}
