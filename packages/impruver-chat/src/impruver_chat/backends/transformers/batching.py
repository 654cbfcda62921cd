"""Several prompts at once with transformers: padded on the left, each row with its own draws; who is done leaves."""

from collections.abc import Iterator, Sequence
from typing import Any

from impruver_chat.backends.base import ActiveGeneration, Answer, Prompt
from impruver_chat.backends.transformers.batch_sampling import check_no_nan, choose_tokens
from impruver_chat.generation.parameters import SamplingParams

MAX_BATCH_TOKENS = 32_768  # tokens of prompts and answers at once; their cache is a few GB with a model of 7 B
IndexedPrompt = tuple[int, Prompt]  # a prompt behind its place


class BatchSlot(ActiveGeneration):
    """One prompt on its way, and what it draws with."""

    def __init__(self, backend: Any, place: int, prompt: Prompt):
        import torch

        super().__init__(backend, prompt, place)
        self.chance = torch.Generator().manual_seed(prompt.seed)


def answer_batch(
    backend: Any, prompts: Sequence[Prompt], sampling: SamplingParams, size: int
) -> Iterator[tuple[int, Answer]]:
    """As `Backend.answer_batch`; in fp32 the answers are the same for any `size`.

    Memory that does not do for a batch is tried with half of it.
    """
    import torch

    waiting = make_batches(list(enumerate(prompts)), size)
    while waiting:
        batch = waiting.pop(0)
        done: set[int] = set()
        try:
            for place, answer in _generate(backend, [BatchSlot(backend, *each) for each in batch], sampling):
                done.add(place)
                yield place, answer
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            left = [(place, prompt) for place, prompt in batch if place not in done]
            waiting = make_batches(left, max(1, len(batch) // 2)) + waiting
            torch.cuda.empty_cache()


def make_batches(placed: Sequence[IndexedPrompt], size: int) -> list[list[IndexedPrompt]]:
    """Prompts of about one length together, the longest first; at most `size` of them, and PLACES tokens."""
    parted: list[list[IndexedPrompt]] = []
    for each in sorted(placed, key=lambda each: -len(each[1].ids)):
        last = parted[-1] if parted else []
        width = len(last[0][1].ids) + max(prompt.max_new_tokens for _, prompt in [*last, each]) if last else 0
        if last and len(last) < size and (len(last) + 1) * width <= MAX_BATCH_TOKENS:
            last.append(each)
        else:
            parted.append([each])
    return parted


def _generate(backend: Any, rows: list[BatchSlot], sampling: SamplingParams) -> Iterator[tuple[int, Answer]]:
    """(place, answer) of each row. The batch goes on without a row that is done, its cache goes with it."""
    import torch

    ids, mask = pad_left([row.prompt.ids for row in rows], backend.model.device)
    cache = None
    while True:
        out = _generate_until_one_ends(backend, rows, sampling, ids, mask, cache)
        yield from ((row.index, row.finish()) for row in rows if row.has_ended)
        left = [number for number, row in enumerate(rows) if not row.has_ended]
        if not left:
            return
        rows, kept = [rows[number] for number in left], torch.tensor(left, device=ids.device)
        ids = out.sequences[kept]
        mask = torch.nn.functional.pad(mask[kept], (0, ids.shape[1] - mask.shape[1]), value=1)
        cache = getattr(out, "past_key_values", None)  # without one all is computed again
        if cache is not None:
            cache.reorder_cache(kept)


def _generate_until_one_ends(
    backend: Any, rows: list[BatchSlot], sampling: SamplingParams, ids: Any, mask: Any, cache: Any
) -> Any:
    """`generate` until the first of the rows is done."""
    import torch

    def take(tokens: Any, scores: Any, **_: Any) -> Any:  # as a stopping criterion: called once for each step
        ended = [row.add_token(token) for row, token in zip(rows, tokens[:, -1].tolist(), strict=True)]
        return torch.full((len(rows),), any(ended), device=tokens.device)

    given = {} if cache is None else {"past_key_values": cache}
    return backend.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=backend.make_generation_config(
            max(row.prompt.max_new_tokens - row.token_count for row in rows)
        ),
        logits_processor=[make_token_chooser(backend, rows, sampling, mask)],
        stopping_criteria=[take],
        **given,
    )


def pad_left(lists: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """(ids, mask), int64 [rows, longest]; padded on the left with what the mask hides."""
    import torch

    width = max(map(len, lists))
    ids = torch.tensor([[each[0]] * (width - len(each)) + list(each) for each in lists], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in lists], device=device)
    return ids, mask


def make_token_chooser(backend: Any, rows: list[BatchSlot], sampling: SamplingParams, mask: Any) -> Any:
    """A logits processor that leaves one token a row. In fp32 an unsure choice is made by the row's prompt alone."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    penalise = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)

    def process(ids: Any, scores: Any) -> Any:
        check_no_nan(ids, scores)
        draws = torch.cat([torch.rand(1, generator=row.chance, dtype=torch.float64) for row in rows]).to(scores.device)
        start = mask.shape[1]
        # What the mask hides is no word of the row; its own last token stands there twice without harm.
        own = torch.cat([ids[:, :start].where(mask.bool(), ids[:, -1:]), ids[:, start:]], dim=1)
        tokens, sure = choose_tokens(penalise(own, scores), sampling, draws)
        for row in (~sure).nonzero()[:, 0].tolist() if backend.is_exact else ():
            said = torch.cat([ids[row, :start][mask[row].bool()], ids[row, start:]])[None]
            tokens[row] = choose_tokens(penalise(said, backend.compute_scores(said)), sampling, draws[row : row + 1])[
                0
            ][0]
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)

    return process
