"""Batches of transformers: the same answers for any size, the same choices as transformers' own."""

import random

import pytest
from impruver_chat.backends.base import Prompt
from impruver_chat.backends.transformers import batching as together
from impruver_chat.backends.transformers.batching import choose_tokens
from impruver_chat.generation.parameters import GREEDY, SamplingParams
from support.chat_models import backend_of
from support.messages import user

WAYS = {
    "greedy": GREEDY,
    "greedy with a penalty": SamplingParams(do_sample=False, repetition_penalty=1.3),
    "drawn": SamplingParams(temperature=1.5, top_p=0.9, top_k=50, repetition_penalty=1.2),
    "drawn of all": SamplingParams(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0),
    "drawn of a share": SamplingParams(temperature=0.7, top_p=0.8, top_k=0, repetition_penalty=1.0),
}


@pytest.fixture(scope="module")
def babbler(models):
    return backend_of(models / "babbler")


@pytest.fixture(scope="module")
def prompts(babbler):
    """64 prompts of 3 to 90 tokens, answers of 1 to 12."""
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcdefghij klm", k=chance.randint(1, 80))) for _ in range(64)]
    ids = [babbler.tokenizer.encode([user(text)]) for text in texts]
    return [Prompt(each, chance.randint(1, 12), 42 + place) for place, each in enumerate(ids)]


def said(backend, prompts, sampling, size):
    given = dict(backend.answer_batch(prompts, sampling, size))
    assert sorted(given) == list(range(len(prompts)))
    return [given[place] for place in range(len(prompts))]


@pytest.mark.parametrize("way", WAYS)
def test_64_answers_are_the_same_for_any_size(way, babbler, prompts):
    alone = said(babbler, prompts, WAYS[way], 1)
    assert said(babbler, prompts, WAYS[way], 7) == alone
    assert said(babbler, prompts, WAYS[way], 64) == alone
    assert len({answer.text for answer in alone}) > 30


@pytest.mark.parametrize("way", ["greedy", "greedy with a penalty"])
def test_greedy_answers_are_those_of_stream(way, babbler, prompts):
    streamed = [babbler.stream_answer(prompt, WAYS[way], lambda _: None) for prompt in prompts]
    assert said(babbler, prompts, WAYS[way], 16) == streamed


def test_a_near_tie_is_decided_by_the_prompt_alone(babbler, prompts, monkeypatch):
    """With scores off by far more than fp32 is, but less than what counts as unsure, the answers stay."""

    import torch

    wanted, asked = said(babbler, prompts, WAYS["drawn"], 16), []
    generate, alone = babbler.model.generate, together.compute_scores
    noise = torch.Generator().manual_seed(1)

    def disturbed(**options):
        def disturb(ids, scores):
            slip = scores.abs().amax(-1, keepdim=True) * 2e-5
            return scores + slip * (torch.rand(scores.shape, generator=noise) * 2 - 1)

        if len(options["input_ids"]) > 1:
            options["logits_processor"] = [disturb, *options["logits_processor"]]
        return generate(**options)

    monkeypatch.setattr(babbler.model, "generate", disturbed)
    monkeypatch.setattr(together, "compute_scores", lambda *given: asked.append(given) or alone(*given))
    assert said(babbler, prompts, WAYS["drawn"], 16) == wanted
    assert asked


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("drawn")])
def test_tokens_come_as_often_as_transformers_would_draw_them(way):
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    sampling, scores = WAYS[way], torch.randn(1, 100, generator=torch.Generator().manual_seed(0)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)]
    chances = warpers(None, scores.clone())[0].softmax(-1)
    draws = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    tokens, sure = choose_tokens(scores.expand(100_000, 100), sampling, draws)
    assert torch.allclose(tokens.bincount(minlength=100) / 100_000, chances, atol=1e-4)
    assert sure.double().mean() > 0.9


def test_batches_are_of_one_length_and_of_what_memory_holds(prompts):
    parted = together.make_batches(list(enumerate(prompts)), 10)
    lengths = [len(prompt.ids) for batch in parted for _, prompt in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(batch) for batch in parted] == [10] * 6 + [4]
    long = [(place, Prompt([1] * 3000, 1096, 0)) for place in range(20)]
    assert [len(batch) for batch in together.make_batches(long, 16)] == [8, 8, 4]


def test_less_memory_means_smaller_batches(babbler, prompts, monkeypatch):
    import torch

    wanted, generate, sizes = said(babbler, prompts, GREEDY, 16), babbler.model.generate, []

    def limited(**options):
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("out of memory")
        return generate(**options)

    monkeypatch.setattr(babbler.model, "generate", limited)
    assert said(babbler, prompts, GREEDY, 16) == wanted
    assert {16, 8, 4} <= set(sizes)
