"""The recipe's sections that impruver-compose owns."""

# ruff: noqa: RUF009  (key() copies its default)
from dataclasses import dataclass

from impruver_core.recipe.schema import REQUIRED, key, list_of

LEAST_MEMORY = 16_000_000  # bytes
USES = ("train", "val", "both")


@dataclass(frozen=True)
class SourceSection:
    """Where rows come from and how they are converted."""

    name: str = key(REQUIRED, "hub id, file, folder or glob", local=True)
    subset: str | None = key(None, "configuration of a hub data set, or of a folder laid out as one")
    split: str = key("train", "split to read, such as train, train[:1000] or train+validation")
    revision: str | None = key(None, "branch, tag or commit of a hub data set")
    converter: str | None = key(
        None, "impruver.<name>, or the dotted path of a function (row, mapping) -> messages; left out: by the columns"
    )
    mapping: dict[str, str] = key({}, "converter's field -> column; `_` means empty")


@dataclass(frozen=True)
class DatasetSection(SourceSection):
    """One data set and how its rows become conversations."""

    use: str | None = key(
        None,
        "train: no row of it goes to val_path; val: none to train_path, and those there that repeat one or have its "
        "prompt are dropped; both (left out): divided by split",
        choices=USES,
    )
    max_tokens_count: int | None = key(None, "longest row of this data set; left out: tokenizer.max_tokens_count")
    strict_columns: bool = key(False, "columns and keys of messages that nothing reads are an error")
    add_global_bos: bool = key(True, "BOS before each row, where the tokenizer puts one and the template does not")
    add_global_eos: bool = key(True, "EOS behind each row that no end-of-turn token ends")
    only_target_loss: bool = key(True, "train on the assistant's turns alone; false: on everything")
    turns: str = key(
        "all",
        "all: a row trains on every assistant's turn; last: on the last alone; each: a row for each, as at inference",
        choices=("all", "last", "each"),
    )
    on_overflow: str = key(
        "drop",
        "too long a row: drop it, or trim_turns: keep the longest leading part that ends with a trained turn",
        choices=("drop", "trim_turns"),
    )
    weight: float = key(1.0, "how often train gets each conversation: 2 twice, 0.3 three of ten, drawn by seed")

    def __post_init__(self):
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"must be above 0, not {self.weight}", "weight")
        if self.use == "val" and self.weight != 1:
            raise ValueError("is about rows of train_path, and use: val gives it none: leave one of them out", "weight")
        if self.max_tokens_count is not None and self.max_tokens_count < 1:
            raise ValueError(f"must be at least 1, not {self.max_tokens_count}", "max_tokens_count")


@dataclass(frozen=True)
class DedupSection:
    """What counts as a duplicate; the first in the recipe's order is kept."""

    method: str = key(
        "minhash", "minhash: near and exact duplicates; exact; none", choices=("minhash", "exact", "none")
    )
    threshold: float = key(0.8, "Jaccard similarity of 5-grams of tokens from which a row is a duplicate")
    num_perm: int = key(128, "permutations of a MinHash signature")
    on: str = key(
        "conversation",
        "what is compared; prompt: what stands before the last answer, answer: what the assistant says",
        choices=("conversation", "prompt", "answer"),
    )

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError(f"must be above 0 and at most 1, not {self.threshold}", "threshold")
        if not 16 <= self.num_perm <= 1024:
            raise ValueError(f"must be from 16 to 1024, not {self.num_perm}", "num_perm")


@dataclass(frozen=True)
class BenchmarkSection(SourceSection):
    """A benchmark whose texts no row of train_path may hold: 13 words in a row, or a shorter text as a whole."""

    split: str | None = key(None, "split to read; left out: all of a file, else test")
    on: str = key(
        "both",
        "texts that are looked for; question: what is asked, answer: what the assistant is to say",
        choices=("question", "answer", "both"),
    )


@dataclass(frozen=True)
class SplitSection:
    """How many conversations of data sets without `use` go to val_path."""

    val_ratio: float = key(0.05, "share of the conversations")
    val_rows: int | None = key(None, "number of conversations, instead of val_ratio")

    def __post_init__(self):
        if not 0 <= self.val_ratio < 1:
            raise ValueError(f"must be at least 0 and below 1 (0.05 is 5%), not {self.val_ratio}", "val_ratio")
        if self.val_rows is not None and self.val_rows < 0:
            raise ValueError(f"must not be negative, not {self.val_rows}", "val_rows")


@dataclass(frozen=True)
class ComposeSection:
    """What encodes, where and by which means it runs, and into which files; whatever it says, the rows are the same."""

    encoder: str = key(
        "auto",
        "what encodes: gigatoken (the extra `fast`), checked against tokenizers, or these; "
        "auto: gigatoken where it is installed and takes the tokenizer",
        choices=("auto", "tokenizers", "gigatoken"),
    )
    part_bytes: int | None = key(None, "the most bytes of a part, unpacked; a row is never cut; left out: 1 GB")
    part_compression: str | None = key(
        None, "zst: parts are written as .jsonl.zst; left out: as .jsonl", choices=("zst",)
    )

    work_dir: str | None = key(
        None, "folder of encoded rows and of later stages, which a stopped run goes on with; left out: in the cache"
    )
    max_memory: int | None = key(
        None, "bytes that sorting and comparing may take in all processes together; left out: half of what is free"
    )
    engine: str = key(
        "local", "what runs the stages: local, processes of this machine; ray, a cluster", choices=("local", "ray")
    )
    address: str | None = key(None, "the Ray cluster, as HOST:6379 or auto; left out: one is started on this machine")

    def __post_init__(self):
        if self.part_bytes is not None and self.part_bytes < 1:
            raise ValueError(f"must be at least 1 byte, not {self.part_bytes}", "part_bytes")
        if self.max_memory is not None and self.max_memory < LEAST_MEMORY:
            raise ValueError(f"must be at least {LEAST_MEMORY} bytes (16 MB), not {self.max_memory}", "max_memory")
        if "\0" in (self.work_dir or ""):
            raise ValueError("holds a null character, which no path can", "work_dir")
        if self.address is not None and self.engine != "ray":
            raise ValueError("is that of a Ray cluster: set engine to ray, too", "address")


SECTIONS = {
    "datasets": list_of(DatasetSection, "data sets, in the order in which duplicates are judged"),
    "dedup": DedupSection,
    "split": SplitSection,
    "decontaminate": list_of(BenchmarkSection, "benchmarks that train_path must share no text with"),
    "compose": ComposeSection,
}
