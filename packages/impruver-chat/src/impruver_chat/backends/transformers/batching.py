"""Several prompts at once with transformers: padded on the left, each row with its own draws; who is done leaves."""

from collections.abc import Iterator, Sequence
from typing import Any

from impruver_chat.backends.base import Answer, Prompt, Reply
from impruver_chat.backends.transformers.batch_sampling import choose, refuse_nan
from impruver_chat.generation.parameters import Sampling

PLACES = 32_768  # tokens of prompts and answers at once; their cache is a few GB with a model of 7 B


Placed = tuple[int, Prompt]  # a prompt behind its place


class Row(Reply):
    """One prompt on its way, and what it draws with."""

    def __init__(self, backend: Any, place: int, prompt: Prompt):
        import torch

        super().__init__(backend, prompt, place)
        self.chance = torch.Generator().manual_seed(prompt.seed)


def answer_batch(
    backend: Any, prompts: Sequence[Prompt], sampling: Sampling, size: int
) -> Iterator[tuple[int, Answer]]:
    """As `Backend.answer_batch`; in fp32 the answers are the same for any `size`.

    Memory that does not do for a batch is tried with half of it.
    """
    import torch

    waiting = batches(list(enumerate(prompts)), size)
    while waiting:
        batch = waiting.pop(0)
        done: set[int] = set()
        try:
            for place, answer in _answer(backend, [Row(backend, *each) for each in batch], sampling):
                done.add(place)
                yield place, answer
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            left = [(place, prompt) for place, prompt in batch if place not in done]
            waiting = batches(left, max(1, len(batch) // 2)) + waiting
            torch.cuda.empty_cache()


def batches(placed: Sequence[Placed], size: int) -> list[list[Placed]]:
    """Prompts of about one length together, the longest first; at most `size` of them, and PLACES tokens."""
    parted: list[list[Placed]] = []
    for each in sorted(placed, key=lambda each: -len(each[1].ids)):
        last = parted[-1] if parted else []
        width = len(last[0][1].ids) + max(prompt.room for _, prompt in [*last, each]) if last else 0
        if last and len(last) < size and (len(last) + 1) * width <= PLACES:
            last.append(each)
        else:
            parted.append([each])
    return parted


def _answer(backend: Any, rows: list[Row], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
    """(place, answer) of each row. The batch goes on without a row that is done, its cache goes with it."""
    import torch

    ids, mask = padded([row.prompt.ids for row in rows], backend.model.device)
    cache = None
    while True:
        out = _round(backend, rows, sampling, ids, mask, cache)
        yield from ((row.place, row.answer()) for row in rows if row.ended)
        left = [number for number, row in enumerate(rows) if not row.ended]
        if not left:
            return
        rows, kept = [rows[number] for number in left], torch.tensor(left, device=ids.device)
        ids = out.sequences[kept]
        mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
        cache = getattr(out, "past_key_values", None)  # without one all is computed again
        if cache is not None:
            cache.reorder_cache(kept)


def _round(backend: Any, rows: list[Row], sampling: Sampling, ids: Any, mask: Any, cache: Any) -> Any:
    """`generate` until the first of the rows is done."""
    import torch

    def take(tokens: Any, scores: Any, **_: Any) -> Any:  # as a stopping criterion: called once for each step
        ended = [row.put(token) for row, token in zip(rows, tokens[:, -1].tolist(), strict=True)]
        return torch.full((len(rows),), any(ended), device=tokens.device)

    given = {} if cache is None else {"past_key_values": cache}
    return backend.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=backend.generation(max(row.prompt.room - row.said for row in rows)),
        logits_processor=[chooser(backend, rows, sampling, mask)],
        stopping_criteria=[take],
        **given,
    )


def padded(lists: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """(ids, mask), int64 [rows, longest]; padded on the left with what the mask hides."""
    import torch

    width = max(map(len, lists))
    ids = torch.tensor([[each[0]] * (width - len(each)) + list(each) for each in lists], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in lists], device=device)
    return ids, mask


def chooser(backend: Any, rows: list[Row], sampling: Sampling, mask: Any) -> Any:
    """A logits processor that leaves one token a row. In fp32 an unsure choice is made by the row's prompt alone."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)

    def process(ids: Any, scores: Any) -> Any:
        refuse_nan(ids, scores)
        draws = torch.cat([torch.rand(1, generator=row.chance, dtype=torch.float64) for row in rows]).to(scores.device)
        start = mask.shape[1]
        # What the mask hides is no word of the row; its own last token stands there twice without harm.
        own = torch.cat([ids[:, :start].where(mask.bool(), ids[:, -1:]), ids[:, start:]], dim=1)
        tokens, sure = choose(penalise(own, scores), sampling, draws)
        for row in (~sure).nonzero()[:, 0].tolist() if backend.is_exact else ():
            said = torch.cat([ids[row, :start][mask[row].bool()], ids[row, start:]])[None]
            tokens[row] = choose(penalise(said, backend.scores_of(said)), sampling, draws[row : row + 1])[0][0]
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)

    return process
