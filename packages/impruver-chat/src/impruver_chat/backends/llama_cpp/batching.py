"""Several prompts at once with llama.cpp, each a sequence of one context; who is done makes place for the next."""

from collections.abc import Iterator, Sequence
from typing import Any

from impruver_chat.backends.base import ActiveGeneration, Answer, Prompt
from impruver_chat.backends.llama_cpp import context as contexts
from impruver_chat.backends.transformers.batching import MAX_BATCH_TOKENS
from impruver_chat.generation.parameters import SamplingParams

MAX_SEQUENCES = 64  # more no llama.cpp takes


class BatchSlot(ActiveGeneration):
    """One prompt on its way: the sequence it is in, its sampler, its last token."""

    def __init__(self, backend: Any, place: int, prompt: Prompt, sequence: int, sampler: Any):
        super().__init__(backend, prompt, place)
        self.sequence, self.sampler, self.last = sequence, sampler, -1

    def sample_token(self, context: Any, number: int) -> bool:
        """Chooses the token after output `number` of the last computation; True where the answer has ended."""
        self.last = self.sampler.sample(context, number)
        return self.add_token(self.last)


def answer_batch(
    backend: Any, prompts: Sequence[Prompt], sampling: SamplingParams, size: int
) -> Iterator[tuple[int, Answer]]:
    """As `Backend.answer_batch`; quantized sums differ with `size`, so answers are likely the same, not surely."""
    for group in group_by_length(prompts):
        width = max(map(compute_length, (prompts[place] for place in group)))
        count = max(1, min(size, len(group), MAX_SEQUENCES, MAX_BATCH_TOKENS // width))
        context = contexts.make_context(backend.model, width, count)
        yield from _generate(backend, context, [(place, prompts[place]) for place in group], sampling, width, count)


def group_by_length(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The places of prompts that need about as much room, the largest first."""
    parted: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda place: -compute_length(prompts[place])):
        if parted and 2 * compute_length(prompts[place]) >= compute_length(prompts[parted[-1][0]]):
            parted[-1].append(place)
        else:
            parted.append([place])
    return parted


def compute_length(prompt: Prompt) -> int:
    """Tokens of the prompt and its longest answer."""
    return len(prompt.ids) + prompt.max_new_tokens


def _generate(backend: Any, context: Any, waiting: list, sampling: SamplingParams, width: int, count: int) -> Iterator:
    """(place, answer) of each of `waiting`: (place, Prompt). `count` of them are on their way together."""
    from cyllama.llama.llama_cpp import LlamaBatch

    batch = LlamaBatch(n_tokens=contexts.BATCH_TOKENS, embd=0, n_seq_max=1)
    free, lines = list(range(count)), []
    while waiting or lines:
        ended = []
        while free and waiting:
            place, prompt = waiting.pop(0)
            line = BatchSlot(backend, place, prompt, free.pop(), contexts.make_sampler(sampling, prompt, width))
            last = decode_prompt(context, batch, line)
            (ended if line.sample_token(context, last) else lines).append(line)
        if not ended and lines:
            batch.clear()
            for line in lines:
                batch.add(line.last, len(line.prompt.ids) + line.token_count - 1, [line.sequence], True)
            context.decode(batch)
            ended = [line for number, line in enumerate(lines) if line.sample_token(context, number)]
            lines = [line for line in lines if line not in ended]
        for line in ended:
            context.memory_seq_rm(line.sequence, -1, -1)
            free.append(line.sequence)
            yield line.index, line.finish()


def decode_prompt(context: Any, batch: Any, line: BatchSlot) -> int:
    """Computes a line's prompt; the number of its last output."""
    ids = line.prompt.ids
    for start in range(0, len(ids), contexts.BATCH_TOKENS):
        part = ids[start : start + contexts.BATCH_TOKENS]
        batch.clear()
        for number, token in enumerate(part, start):
            batch.add(token, number, [line.sequence], number == len(ids) - 1)
        context.decode(batch)
    return len(part) - 1
