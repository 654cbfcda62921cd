"""Answer several prompts at once with llama.cpp, each a sequence of one context; a free sequence takes the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from impruver_chat.backends.base import MAX_BATCH_TOKENS, ActiveGeneration, IndexedAnswers, Prompt
from impruver_chat.backends.chat_tokenizer import ChatTokenizer
from impruver_chat.backends.llama_cpp import context as contexts
from impruver_chat.generation.parameters import SamplingParams

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaBatch, LlamaContext, LlamaModel, LlamaSampler

MAX_SEQUENCES = 64  # llama.cpp takes no more


class BatchSlot(ActiveGeneration):
    """An answer while it is generated: the sequence it is in, its sampler, its last token."""

    def __init__(self, tokenizer: ChatTokenizer, prompt: Prompt, index: int, sequence: int, sampler: LlamaSampler):
        super().__init__(tokenizer, prompt, index)
        self.sequence, self.sampler, self.last_token = sequence, sampler, -1

    def sample_token(self, context: LlamaContext, output: int) -> bool:
        """Sample the token after that output of the last computation; True where the answer has ended."""
        self.last_token = self.sampler.sample(context, output)
        return self.add_token(self.last_token)


def answer_batch(
    model: LlamaModel, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], sampling: SamplingParams, size: int
) -> IndexedAnswers:
    """Answer prompts in batches, see `Backend`; quantized sums differ with `size`, so answers may differ, too."""
    from cyllama.llama.llama_cpp import LlamaBatch

    for group in group_by_length(prompts):
        width = max(compute_length(prompts[index]) for index in group)
        count = max(1, min(size, len(group), MAX_SEQUENCES, MAX_BATCH_TOKENS // width))
        context, free, slots = contexts.make_context(model, width, count), list(range(count)), []
        batch = LlamaBatch(n_tokens=contexts.BATCH_TOKENS, embd=0, n_seq_max=1)
        while group or slots:
            ended = []
            while free and group:
                prompt = prompts[index := group.pop(0)]
                sampler = contexts.make_sampler(sampling, prompt, width)
                slot = BatchSlot(tokenizer, prompt, index, free.pop(), sampler)
                output = decode_prompt(context, batch, slot)
                (ended if slot.sample_token(context, output) else slots).append(slot)
            if not ended and slots:
                batch.clear()
                for slot in slots:
                    position = len(slot.prompt.ids) + slot.token_count - 1
                    batch.add(slot.last_token, position, [slot.sequence], True)
                context.decode(batch)
                ended = [slot for output, slot in enumerate(slots) if slot.sample_token(context, output)]
                slots = [slot for slot in slots if slot not in ended]
            for slot in ended:
                context.memory_seq_rm(slot.sequence, -1, -1)
                free.append(slot.sequence)
                yield slot.index, slot.finish()


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


def decode_prompt(context: LlamaContext, batch: LlamaBatch, slot: BatchSlot) -> int:
    """Compute a slot's prompt; the number of its last output."""
    ids = slot.prompt.ids
    for start in range(0, len(ids), contexts.BATCH_TOKENS):
        part = ids[start : start + contexts.BATCH_TOKENS]
        batch.clear()
        for position, token in enumerate(part, start):
            batch.add(token, position, [slot.sequence], position == len(ids) - 1)
        context.decode(batch)
    return len(part) - 1
