"""How the tokens of a batch are chosen: row by row, so that a row's answer is the same whoever stands beside it.

Sums of another shape differ in the last bits. Where they may decide, the choice is called unsure.
"""

from typing import Any

from impruver_core.errors import CheckFailedError

from impruver_chat.generation.parameters import SamplingParams

SCORE_TOLERANCE = 5e-5  # how far fp32 scores may be off, as a share of the largest; seen: 2e-6


def check_no_nan(ids: Any, scores: Any) -> Any:
    """As a logits processor: CheckFailed where the model's scores are no numbers; else the likeliest would be any."""
    if scores.isnan().any():
        raise CheckFailedError(
            "the model computes NaN, so it has no answer: its weights are broken, or too large for its precision "
            "(--set model.dtype=fp32)"
        )
    return scores


def choose_tokens(scores: Any, sampling: SamplingParams, draws: Any) -> tuple[Any, Any]:
    """(tokens [rows], sure [rows]) for `scores` [rows, vocabulary] and `draws` [rows] in [0, 1)."""
    slip = scores.where(scores.isfinite(), 0).abs().amax(-1).double() * SCORE_TOLERANCE
    if not sampling.do_sample:
        best = scores.topk(min(2, scores.shape[-1]), dim=-1)
        return best.indices[:, 0], (best.values[:, 0] - best.values[:, -1]).double() > slip
    return _sample_tokens(scores.double() / sampling.temperature, sampling, draws, 2 * slip / sampling.temperature)


def _sample_tokens(scores: Any, sampling: SamplingParams, draws: Any, slip: Any) -> tuple[Any, Any]:
    """Draws from the likeliest tokens in the order of their ids, which near-ties do not change."""
    values, ids, kept, unsure = _select_candidates(scores, sampling, slip[:, None])
    chances = values.masked_fill(~kept, float("-inf")).softmax(-1)
    order = ids.argsort(-1)
    ends = chances.gather(1, order).cumsum(-1)
    ends = ends / ends[:, -1:]
    place = (ends <= draws[:, None]).sum(-1, keepdim=True).clamp(max=ends.shape[-1] - 1)
    # The borders move by what the scores are off, and by the tokens that may or may not be among the likeliest.
    moved = slip + (values.softmax(-1) * unsure).sum(-1) / (values.softmax(-1) * kept).sum(-1)
    above = draws - (ends - chances.gather(1, order)).gather(1, place)[:, 0]
    below = ends.gather(1, place)[:, 0] - draws
    return ids.gather(1, order).gather(1, place)[:, 0], (above > moved) & (below > moved)


def _select_candidates(scores: Any, sampling: SamplingParams, slip: Any) -> tuple[Any, Any, Any, Any]:
    """(scores, ids, kept, unsure) [rows, candidates]; unsure: which a slip of the scores may keep or leave out."""
    import torch

    top_k, size = sampling.top_k, scores.shape[-1]
    if not top_k and sampling.top_p == 1:
        ids = torch.arange(size, device=scores.device).expand_as(scores)
        return scores, ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    values, ids = scores.topk(min(top_k + 1, size) if top_k else size, dim=-1)
    kept = (torch.arange(values.shape[-1], device=values.device) < (top_k or size)).expand_as(ids)
    unsure = torch.zeros_like(kept)
    if 0 < top_k < values.shape[-1] and bool((values[:, top_k - 1] - values[:, top_k] < slip[:, 0]).any()):
        unsure = (values - values[:, top_k - 1 : top_k]).abs() < slip
        unsure = unsure & unsure[:, top_k:]  # only where the next one is as near
    chances = values.masked_fill(~kept, float("-inf")).softmax(-1)
    before = chances.cumsum(-1) - chances
    if sampling.top_p < 1:
        unsure = unsure | ((before - sampling.top_p).abs() < slip)
        kept = kept & (before < sampling.top_p)
        kept[:, 0] = True
    return values, ids, kept, unsure
