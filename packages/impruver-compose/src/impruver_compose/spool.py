"""Encoded rows on disk until it is known where they go; in memory stay their places and hashes."""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from impruver_compose.ledger import Origin


class Spool:
    """A nameless file of byte strings, read back by number; gone when it is closed."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._ends = array("q", [0])

    def append(self, content: bytes) -> None:
        """Adds a byte string; its number is how many were there before."""
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        return self._file.read(end - start)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def size(self) -> int:
        """Bytes in it."""
        return self._ends[-1]

    def close(self) -> None:
        """Closes and so removes the file."""
        self._file.close()


@dataclass
class Corpus:
    """All encoded conversations in the recipe's order: on disk their rows, in memory what dedup and split judge by."""

    rows: Spool  # lines of train.jsonl: one each, several for a long text
    extras: Spool  # for each, a JSON list of what its lines carry besides in val.jsonl
    said: Spool  # uint32 token ids of what is compared
    origins: list[Origin] = field(default_factory=list)
    tokens: array = field(default_factory=lambda: array("q"))
    learned: array = field(default_factory=lambda: array("q"))
    exact: list[bytes] = field(default_factory=list)  # digest of what must be equal in an exact duplicate
    prompts: list[bytes] = field(default_factory=list)  # digest of the texts before the last answer, else of all

    @classmethod
    def in_folder(cls, folder: Path) -> "Corpus":
        """An empty one, its files in `folder`."""
        return cls(Spool(folder), Spool(folder), Spool(folder))

    def close(self) -> None:
        """Removes the files."""
        for spool in (self.rows, self.extras, self.said):
            spool.close()

    def add(
        self,
        origin: Origin,
        lines: bytes,
        extra: bytes,
        said: list[int],
        prompt: list[int],
        asked: bytes,
        ids: list[int],
        learned: int,
        on_prompt: bool = False,
    ) -> None:
        """Adds a conversation: its lines, what val carries; the ids said, those of the prompt and its texts, and all.

        Compared is what is said, exactly all; `on_prompt` the prompt alone, unless it is empty.
        """
        self.rows.append(lines)
        self.extras.append(extra)
        self.said.append(np.asarray(prompt if on_prompt else said, np.uint32).tobytes())
        self.origins.append(origin)
        self.tokens.append(len(ids))
        self.learned.append(learned)
        self.prompts.append(_digest(asked) if asked else _digest_ids(ids))
        self.exact.append(self.prompts[-1] if on_prompt else _digest_ids(ids))

    def lines(self, numbers: list[int]) -> int:
        """How many rows these conversations are."""
        return sum(self.rows[number].count(b"\n") for number in numbers)

    def val_rows(self, numbers: list[int]) -> Iterator[dict]:
        """The rows of these conversations with all that val.jsonl carries."""
        for number in numbers:
            lines = self.rows[number].splitlines()
            for line, extra in zip(lines, json.loads(self.extras[number]), strict=True):
                yield json.loads(line) | extra

    def said_ids(self, number: int) -> np.ndarray:
        """uint32 ids of what is compared of conversation `number`."""
        return np.frombuffer(self.said[number], np.uint32)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _digest_ids(ids: list[int]) -> bytes:
    return _digest(np.asarray(ids, np.uint32).tobytes())
