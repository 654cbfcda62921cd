"""The process in which llama.cpp runs: it reads requests from stdin, a line of JSON each, and replies on stdout.

    python -m impruver_chat.backends.llama_cpp.worker

A request is [number, name of a Worker's method, arguments…], its reply that number and [result, error, exit code]. A
line that was cut off by Ctrl+C in the process that asks is left out. It ends with its stdin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.llama_cpp import load_checked_gguf
from impruver_core.worker_process import claim_stdout

from impruver_chat.backends.llama_cpp.inference import CachedSequence, generate_batch
from impruver_chat.generation.prompt import Prompt, SamplingParams


@dataclass(frozen=True)
class GgufDescription:
    """What is asked of a loaded file once; special tokens that it has not are below 0."""

    context_length: int | None
    chat_template: str | None
    add_space_prefix: str  # as the metadata has it
    add_bos: bool
    vocab_type: int
    vocab_size: int
    bos: int
    eos: int
    eot: int
    pad: int
    end_ids: list[int]  # of all tokens at which llama.cpp ends an answer


class Worker:
    """A model with the answer that is being computed; the methods are the requests, `load` the first."""

    def __init__(self) -> None:
        self._model = self._vocab = self._sequence = self._answers = None

    def load(self, path: str) -> dict[str, Any]:
        """Load a file that was checked; the fields of its GgufDescription."""
        try:
            self._model = load_checked_gguf(Path(path))
        except ImpruverError as error:
            raise ImpruverError(f"--gguf: {error}") from error.__cause__
        self._sequence = CachedSequence(self._model)
        self._vocab = vocab = self._model.get_vocab()
        metadata = self._model.metadata()
        return asdict(
            GgufDescription(
                context_length=length if (length := self._model.n_ctx_train) > 0 else None,  # 2^32 - 1 is read as -1
                chat_template=metadata.get("tokenizer.chat_template"),
                add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", "true"),
                add_bos=vocab.get_add_bos(),
                vocab_type=vocab.vocab_type,
                vocab_size=vocab.n_vocab,
                bos=vocab.token_bos(),
                eos=vocab.token_eos(),
                eot=vocab.token_eot(),
                pad=vocab.token_pad(),
                end_ids=list(filter(vocab.is_eog, range(vocab.n_vocab))),
            )
        )

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """The ids of a text; with `parse_special` control tokens are found in it."""
        return self._vocab.tokenize(text, add_special=False, parse_special=parse_special)

    def detokenize(self, ids: list[int]) -> str:
        """llama.cpp's text of ids."""
        return self._vocab.detokenize(ids)

    def get_tokens(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """The text and the attributes of tokens."""
        return [(self._vocab.get_text(number), self._vocab.get_attr(number)) for number in ids]

    def find_added_tokens(self, attributes: int) -> list[int]:
        """Find the ids of all tokens with one of these attributes."""
        return [number for number in range(self._vocab.n_vocab) if self._vocab.get_attr(number) & attributes]

    def start_answer(self, prompt: dict[str, Any], sampling: dict[str, Any]) -> None:
        """Begin to answer a prompt, in place of what was answered before."""
        self._answers = self._sequence.generate_answer(Prompt(**prompt), SamplingParams(**sampling))

    def start_batch(self, prompts: list[dict[str, Any]], sampling: dict[str, Any], width: int, count: int) -> None:
        """Begin to answer several prompts, in place of what was answered before; see `generate_batch`."""
        prompts = [Prompt(**prompt) for prompt in prompts]
        self._answers = generate_batch(self._model, prompts, SamplingParams(**sampling), width, count)

    def compute_next(self, ended: list[int] | None = None) -> int | list[tuple[int, int]] | None:
        """Compute the next token or tokens of what was begun; None for a part of a prompt, and at the end of a batch.

        `ended` are the indices of a batch's answers that ended with the tokens before.
        """
        try:
            return self._answers.send(ended)
        except StopIteration:
            return None


def main() -> None:
    """Answer requests until there are no more."""
    replies, worker = claim_stdout(), Worker()
    for line in sys.stdin.buffer:
        try:
            number, name, *arguments = json.loads(line)
        except ValueError:
            continue
        result = error = code = None
        try:
            result = getattr(worker, name)(*arguments)
        except ImpruverError as refusal:
            error, code = str(refusal), refusal.exit_code
        print(number, json.dumps([result, error, code]), file=replies, flush=True)


if __name__ == "__main__":
    main()
