"""The llama.cpp backend: a GGUF file, in a process of its own that this one asks token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.llama_cpp import check_gguf
from impruver_core.recipe.sections import TokenizerSection

from impruver_chat.backends.base import MAX_BATCH_TOKENS, ActiveGeneration, Answer, Emit, IndexedAnswers
from impruver_chat.backends.chat_tokenizer import ChatTokenizer, EncodingOptions, load_saved_tokenizer
from impruver_chat.backends.llama_cpp.process import LlamaCppProcess
from impruver_chat.backends.llama_cpp.vocab import GgufVocab, make_gguf_tokenizer
from impruver_chat.backends.llama_cpp.worker import GgufDescription
from impruver_chat.generation.prompt import Prompt, SamplingParams
from impruver_chat.model_dir import TOKENIZER, GgufFile

MAX_SEQUENCES = 64  # of a context; llama.cpp takes no more


class LlamaCppBackend:
    """A GGUF model that answers with llama.cpp; see `Backend`. `close` ends its process."""

    no_comparison_reason = GgufFile.no_comparison_reason

    def __init__(self, process: LlamaCppProcess, vocab: GgufVocab, tokenizer: ChatTokenizer):
        self.process, self.vocab, self.tokenizer = process, vocab, tokenizer
        self.context_length: int | None = vocab.description.context_length

    def close(self) -> None:
        """End llama.cpp's process."""
        self.process.close()

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Emit) -> Answer:
        """Answer one prompt; see `Backend`."""
        generation = ActiveGeneration(self.tokenizer, prompt, emit=emit)
        self.process.request("start_answer", asdict(prompt), asdict(sampling))
        number, ended = self.process.send("compute_next"), False
        while not ended:
            token = self.process.receive(number)
            number = self.process.send("compute_next")  # computed while this one is shown; after the last for nothing
            ended = token is not None and generation.add_token(token)
        return generation.finish()

    def answer_batch(self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int) -> IndexedAnswers:
        """Answer prompts in batches, see `Backend`; quantized sums differ with `size`, so answers may differ, too."""
        for group in group_by_length(prompts):
            width = max(compute_length(prompts[index]) for index in group)
            count = max(1, min(size, len(group), MAX_SEQUENCES, MAX_BATCH_TOKENS // width))
            generations = [ActiveGeneration(self.tokenizer, prompts[index], index) for index in group]
            given = [asdict(prompts[index]) for index in group]
            self.process.request("start_batch", given, asdict(sampling), width, count)
            ended = None
            while (tokens := self.process.request("compute_next", ended)) is not None:
                ended = [place for place, token in tokens if generations[place].add_token(token)]
                for place in ended:
                    yield generations[place].index, generations[place].finish()


def group_by_length(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Group the indices of prompts that need about as many positions, the longest first."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: -compute_length(prompts[index])):
        if groups and 2 * compute_length(prompts[index]) >= compute_length(prompts[groups[-1][0]]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def compute_length(prompt: Prompt) -> int:
    """Positions of the prompt and its longest answer."""
    return len(prompt.ids) + prompt.max_new_tokens


def load_backend(
    source: GgufFile, section: TokenizerSection, options: EncodingOptions, recipe_dir: Path | None = None
) -> LlamaCppBackend:
    """Load a GGUF file; `section` is the recipe's, for the tokenizer in output_dir. The backend is to be closed."""
    process = LlamaCppProcess(source.path)
    try:
        try:
            check_gguf(source.path)
        except ImpruverError as error:
            raise ImpruverError(f"--gguf: {error}") from error.__cause__
        loading, saved = process.send("load", str(source.path)), None
        # Loaded meanwhile: it takes as long.
        if source.output_dir is not None and (source.output_dir / TOKENIZER).is_file():
            saved = load_saved_tokenizer(source.output_dir, section, recipe_dir)
        vocab = GgufVocab(process, GgufDescription(**process.receive(loading)))
        return LlamaCppBackend(process, vocab, make_gguf_tokenizer(vocab, saved, source, options))
    except BaseException:
        process.close()
        raise
