"""The llama.cpp backend: a GGUF file, through cyllama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from impruver_core.llama_cpp import load_gguf
from impruver_core.recipe.sections import TokenizerSection

from impruver_chat.backends.base import ActiveGeneration, Answer, Emit, IndexedAnswers, Prompt
from impruver_chat.backends.chat_tokenizer import ChatTokenizer, EncodingOptions
from impruver_chat.backends.llama_cpp import batching
from impruver_chat.backends.llama_cpp.context import CachedSequence, make_sampler
from impruver_chat.backends.llama_cpp.vocab import make_gguf_tokenizer
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.model_dir import GgufFile

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaModel


class LlamaCppBackend:
    """A GGUF model that answers with llama.cpp; see `Backend`."""

    no_comparison_reason = GgufFile.no_comparison_reason

    def __init__(self, model: LlamaModel, tokenizer: ChatTokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.context_length: int | None = model.n_ctx_train
        self._sequence = CachedSequence(model)

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Emit) -> Answer:
        """Answer one prompt; see `Backend`."""
        generation, sequence = ActiveGeneration(self.tokenizer, prompt, emit=emit), self._sequence
        sequence.decode_prompt(prompt.ids, prompt.max_new_tokens)
        sampler = make_sampler(sampling, prompt, sequence.size)
        while not generation.add_token(token := sampler.sample(sequence.context, -1)):
            sequence.decode([token])
        return generation.finish()

    def answer_batch(self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int) -> IndexedAnswers:
        """Answer prompts in batches; see `Backend`."""
        return batching.answer_batch(self.model, self.tokenizer, prompts, sampling, size)


def load_backend(source: GgufFile, section: TokenizerSection, options: EncodingOptions) -> LlamaCppBackend:
    """Load a GGUF file; `section` is the recipe's, for the tokenizer in output_dir."""
    model = load_gguf(source.path)
    return LlamaCppBackend(model, make_gguf_tokenizer(model, source, section, options))
