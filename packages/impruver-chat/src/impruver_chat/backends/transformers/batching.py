"""Answer several prompts at once with transformers: padded on the left, each row with its own generator of draws.

A row that has ended leaves the batch, and its part of the cache with it. A row's answer is the same whatever stands
beside it, though sums of another shape differ in the last bits: a choice that these may decide is called unsure, and in
fp32 it is made again by the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.errors import CheckFailedError

from impruver_chat.backends.base import MAX_BATCH_TOKENS, ActiveGeneration, IndexedAnswers
from impruver_chat.backends.chat_tokenizer import ChatTokenizer
from impruver_chat.generation.parameters import GREEDY
from impruver_chat.generation.prompt import Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

SCORE_TOLERANCE = 5e-5  # how far fp32 scores may be off, as a share of the largest; seen: 2e-6
IndexedPrompt = tuple[int, Prompt]  # with its index among all prompts


class BatchSlot(ActiveGeneration):
    """A row of the batch: an answer while it is generated, and the generator of its draws."""

    def __init__(self, tokenizer: ChatTokenizer, index: int, prompt: Prompt):
        import torch

        super().__init__(tokenizer, prompt, index)
        self.generator = torch.Generator().manual_seed(prompt.seed)


def answer_batch(
    model: PreTrainedModel, tokenizer: ChatTokenizer, prompts: Sequence[Prompt], sampling: SamplingParams, size: int
) -> IndexedAnswers:
    """Answer prompts in batches, see `Backend`; in fp32 the answers are the same for any `size`.

    A batch that memory does not suffice for is tried again with half of it.
    """
    import torch

    waiting = make_batches(list(enumerate(prompts)), size)
    while waiting:
        batch = waiting.pop(0)
        done: set[int] = set()
        try:
            for index, answer in _generate(model, [BatchSlot(tokenizer, *each) for each in batch], sampling):
                done.add(index)
                yield index, answer
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            left = [(index, prompt) for index, prompt in batch if index not in done]
            waiting = make_batches(left, max(1, len(batch) // 2)) + waiting
            torch.cuda.empty_cache()


def make_batches(prompts: Sequence[IndexedPrompt], size: int) -> list[list[IndexedPrompt]]:
    """Group prompts of about one length, the longest first: at most `size` of them, and MAX_BATCH_TOKENS."""
    batches: list[list[IndexedPrompt]] = []
    for each in sorted(prompts, key=lambda each: -len(each[1].ids)):
        last = batches[-1] if batches else []
        width = len(last[0][1].ids) + max(prompt.max_new_tokens for _, prompt in [*last, each]) if last else 0
        if last and len(last) < size and (len(last) + 1) * width <= MAX_BATCH_TOKENS:
            last.append(each)
        else:
            batches.append([each])
    return batches


def _generate(model: PreTrainedModel, slots: list[BatchSlot], sampling: SamplingParams) -> IndexedAnswers:
    """Yield (index, answer) as each slot ends, and go on without it."""
    import torch

    def stop_at_end(ids: Tensor, scores: Tensor, **_) -> Tensor:  # called once for each step
        ended = [slot.add_token(token) for slot, token in zip(slots, ids[:, -1].tolist(), strict=True)]
        return torch.full((len(slots),), any(ended), device=ids.device)

    prompts, cache = [slot.prompt.ids for slot in slots], {}
    width = max(map(len, prompts))
    ids = torch.tensor([[each[0]] * (width - len(each)) + each for each in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    while True:
        remaining = max(slot.prompt.max_new_tokens - slot.token_count for slot in slots)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=make_generation_config(remaining),
            logits_processor=[make_token_chooser(model, slots, sampling, mask)],
            stopping_criteria=[stop_at_end],
            **cache,
        )
        yield from ((slot.index, slot.finish()) for slot in slots if slot.has_ended)
        rows = torch.tensor([row for row, slot in enumerate(slots) if not slot.has_ended], device=ids.device)
        slots = [slot for slot in slots if not slot.has_ended]
        if not slots:
            return
        ids = out.sequences[rows]
        mask = torch.nn.functional.pad(mask[rows], (0, ids.shape[1] - mask.shape[1]), value=1)
        cache = {}  # without one all is computed again
        if (past := getattr(out, "past_key_values", None)) is not None:
            past.reorder_cache(rows)
            cache = {"past_key_values": past}


def make_token_chooser(
    model: PreTrainedModel, slots: list[BatchSlot], sampling: SamplingParams, mask: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a logits processor that leaves one token a row; `mask` `(rows, sequence)` is that of the prompts."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    is_exact = str(model.dtype) == "torch.float32" and not getattr(model, "is_quantized", False)
    penalize = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        check_no_nan(ids, scores)
        draws = torch.cat([torch.rand(1, generator=slot.generator, dtype=torch.float64) for slot in slots])
        draws, start = draws.to(scores.device), mask.shape[1]
        # Padding is not to be penalized: the row's own last token in its place changes nothing.
        own = torch.cat([ids[:, :start].where(mask.bool(), ids[:, -1:]), ids[:, start:]], dim=1)
        tokens, sure = choose_tokens(penalize(own, scores), sampling, draws)
        for row in (~sure).nonzero()[:, 0].tolist() if is_exact else ():
            alone = torch.cat([ids[row, :start][mask[row].bool()], ids[row, start:]])[None]
            alone_scores = penalize(alone, compute_scores(model, alone))
            tokens[row] = choose_tokens(alone_scores, sampling, draws[row : row + 1])[0][0]
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)

    return process


def make_generation_config(max_new_tokens: int, sampling: SamplingParams = GREEDY) -> GenerationConfig:
    """Make a GenerationConfig that returns the cache; ends of turn are left to the stopping criteria."""
    from transformers import GenerationConfig

    drawn = {}
    if sampling.do_sample:
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return GenerationConfig(
        do_sample=sampling.do_sample,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        return_dict_in_generate=True,
        **drawn,
    )


def check_no_nan(ids: Tensor, scores: Tensor) -> Tensor:
    """Raise CheckFailedError where the model's scores are NaN, as a logits processor; else any token would do."""
    if scores.isnan().any():
        raise CheckFailedError(
            "the model computes NaN, so it has no answer: its weights are broken, or too large for its precision "
            "(--set model.dtype=fp32)"
        )
    return scores


def compute_scores(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Compute the scores `(1, vocabulary)` of what follows `ids` `(1, sequence)`, without batch or cache."""
    config = make_generation_config(1)
    config.output_logits, config.use_cache = True, False
    out = model.generate(input_ids=ids, attention_mask=ids.new_ones(ids.shape), generation_config=config)
    return out.logits[0]


class Candidates(NamedTuple):
    """The tokens that top_k and top_p leave, `(rows, candidates)`, the likeliest first.

    `unsure`: an error within the tolerance would turn `allowed` over.
    """

    scores: Tensor
    ids: Tensor
    allowed: Tensor
    unsure: Tensor


def choose_tokens(scores: Tensor, sampling: SamplingParams, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Choose a token for each row, greedily or by its draw.

    Args:
        scores: `(rows, vocabulary)`, after the repetition penalty.
        draws: `(rows,)`, float64 in [0, 1).

    Returns:
        The tokens `(rows,)`, and whether each is sure `(rows,)`: no error within the tolerance would change it.
    """
    error = scores.where(scores.isfinite(), 0).abs().amax(-1).double() * SCORE_TOLERANCE
    if not sampling.do_sample:
        best = scores.topk(min(2, scores.shape[-1]), dim=-1)
        return best.indices[:, 0], (best.values[:, 0] - best.values[:, -1]).double() > error
    return _sample_tokens(scores.double() / sampling.temperature, sampling, draws, 2 * error / sampling.temperature)


def _sample_tokens(scores: Tensor, sampling: SamplingParams, draws: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from the candidates in the order of their ids, which near-ties do not change."""
    values, ids, allowed, unsure = _select_candidates(scores, sampling, error[:, None])
    probabilities = values.masked_fill(~allowed, float("-inf")).softmax(-1)
    order = ids.argsort(-1)
    ends = probabilities.gather(1, order).cumsum(-1)
    ends = ends / ends[:, -1:]
    position = (ends <= draws[:, None]).sum(-1, keepdim=True).clamp(max=ends.shape[-1] - 1)
    # The borders move by the error of the scores, and by the tokens that may or may not be candidates.
    moved = error + (values.softmax(-1) * unsure).sum(-1) / (values.softmax(-1) * allowed).sum(-1)
    above = draws - (ends - probabilities.gather(1, order)).gather(1, position)[:, 0]
    below = ends.gather(1, position)[:, 0] - draws
    return ids.gather(1, order).gather(1, position)[:, 0], (above > moved) & (below > moved)


def _select_candidates(scores: Tensor, sampling: SamplingParams, error: Tensor) -> Candidates:
    import torch

    top_k, size = sampling.top_k, scores.shape[-1]
    if not top_k and sampling.top_p == 1:
        ids = torch.arange(size, device=scores.device).expand_as(scores)
        return Candidates(scores, ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool))
    values, ids = scores.topk(min(top_k + 1, size) if top_k else size, dim=-1)
    allowed = (torch.arange(values.shape[-1], device=values.device) < (top_k or size)).expand_as(ids)
    unsure = torch.zeros_like(allowed)
    if 0 < top_k < values.shape[-1] and bool((values[:, top_k - 1] - values[:, top_k] < error[:, 0]).any()):
        unsure = (values - values[:, top_k - 1 : top_k]).abs() < error
        unsure = unsure & unsure[:, top_k:]  # only where the next one is as near
    probabilities = values.masked_fill(~allowed, float("-inf")).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    if sampling.top_p < 1:
        unsure = unsure | ((before - sampling.top_p).abs() < error)
        allowed = allowed & (before < sampling.top_p)
        allowed[:, 0] = True
    return Candidates(values, ids, allowed, unsure)
