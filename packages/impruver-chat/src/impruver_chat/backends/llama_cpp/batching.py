"""Several prompts at once with llama.cpp, each a sequence of one context; who is done makes place for the next."""

from collections.abc import Iterator, Sequence
from typing import Any

from impruver_chat.backends.base import Answer, Prompt, Reply
from impruver_chat.backends.llama_cpp import context as contexts
from impruver_chat.backends.transformers.batching import PLACES
from impruver_chat.generation.parameters import Sampling

SEQUENCES = 64  # more no llama.cpp takes


class Line(Reply):
    """One prompt on its way: the sequence it is in, its sampler, its last token."""

    def __init__(self, backend: Any, place: int, prompt: Prompt, sequence: int, sampler: Any):
        super().__init__(backend, prompt, place)
        self.sequence, self.sampler, self.last = sequence, sampler, -1

    def take(self, context: Any, number: int) -> bool:
        """Chooses the token after output `number` of the last computation; True where the answer has ended."""
        self.last = self.sampler.sample(context, number)
        return self.put(self.last)


def answer_batch(
    backend: Any, prompts: Sequence[Prompt], sampling: Sampling, size: int
) -> Iterator[tuple[int, Answer]]:
    """As `Backend.answer_batch`; quantized sums differ with `size`, so answers are likely the same, not surely."""
    for group in groups(prompts):
        width = max(map(needed, (prompts[place] for place in group)))
        count = max(1, min(size, len(group), SEQUENCES, PLACES // width))
        context = contexts.new_context(backend.model, width, count)
        yield from _answer(backend, context, [(place, prompts[place]) for place in group], sampling, width, count)


def groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The places of prompts that need about as much room, the largest first."""
    parted: list[list[int]] = []
    for place in sorted(range(len(prompts)), key=lambda place: -needed(prompts[place])):
        if parted and 2 * needed(prompts[place]) >= needed(prompts[parted[-1][0]]):
            parted[-1].append(place)
        else:
            parted.append([place])
    return parted


def needed(prompt: Prompt) -> int:
    """Tokens of the prompt and its longest answer."""
    return len(prompt.ids) + prompt.room


def _answer(backend: Any, context: Any, waiting: list, sampling: Sampling, width: int, count: int) -> Iterator:
    """(place, answer) of each of `waiting`: (place, Prompt). `count` of them are on their way together."""
    from cyllama.llama.llama_cpp import LlamaBatch

    batch = LlamaBatch(n_tokens=contexts.BATCH, embd=0, n_seq_max=1)
    free, lines = list(range(count)), []
    while waiting or lines:
        ended = []
        while free and waiting:
            place, prompt = waiting.pop(0)
            line = Line(backend, place, prompt, free.pop(), contexts.make_sampler(sampling, prompt, width))
            last = compute_prompt(context, batch, line)
            (ended if line.take(context, last) else lines).append(line)
        if not ended and lines:
            batch.clear()
            for line in lines:
                batch.add(line.last, len(line.prompt.ids) + line.said - 1, [line.sequence], True)
            context.decode(batch)
            ended = [line for number, line in enumerate(lines) if line.take(context, number)]
            lines = [line for line in lines if line not in ended]
        for line in ended:
            context.memory_seq_rm(line.sequence, -1, -1)
            free.append(line.sequence)
            yield line.place, line.answer()


def compute_prompt(context: Any, batch: Any, line: Line) -> int:
    """Computes a line's prompt; the number of its last output."""
    ids = line.prompt.ids
    for start in range(0, len(ids), contexts.BATCH):
        part = ids[start : start + contexts.BATCH]
        batch.clear()
        for number, token in enumerate(part, start):
            batch.add(token, number, [line.sequence], number == len(ids) - 1)
        context.decode(batch)
    return len(part) - 1
