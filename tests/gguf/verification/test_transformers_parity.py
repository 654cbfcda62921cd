"""What the comparison with the merged model makes of logits: roundings and ties pass, other weights do not."""

from dataclasses import replace

import numpy as np
import pytest
from impruver_gguf.verification.transformers_parity import _judge_result, compare_logits

POSITIONS, VOCABULARY, STEP = 60, 500, 1e-3
PLACES = [("heldout.jsonl, line 7", place) for place in range(POSITIONS)]


@pytest.fixture
def logits():
    """A model's logits, exact and rounded, and those of a file that rounds otherwise by as much."""
    generator = np.random.default_rng(5)
    exact = generator.normal(0, 2, (POSITIONS, VOCABULARY)).astype(np.float32)
    in_file, rounded = (exact + generator.normal(0, STEP, exact.shape).astype(np.float32) for _ in range(2))
    return in_file, exact, rounded


def judge(in_file, exact, rounded, *, has_experts=False):
    return _judge_result(replace(compare_logits(in_file, exact, rounded, PLACES), has_experts=has_experts))


@pytest.mark.parametrize("has_experts", [False, True])
def test_roundings_and_near_ties_of_tokens_pass(has_experts, logits):
    in_file, exact, rounded = logits
    first, second = exact[3].argsort()[-2:]
    exact[3, first], exact[3, second] = 8.0, 8.0 + STEP
    in_file[3, first], in_file[3, second] = 8.0 + STEP, 8.0
    rounded[3] = exact[3]
    assert in_file[3].argmax() != exact[3].argmax()
    assert judge(*logits, has_experts=has_experts) is None


@pytest.mark.parametrize("has_experts", [False, True])
def test_other_weights_fail_at_every_position(has_experts, logits):
    in_file, exact, _ = logits
    in_file += 8 * STEP * np.sign(exact)
    assert "its weights are not that model's" in judge(*logits, has_experts=has_experts)


@pytest.mark.parametrize("has_experts", [False, True])
def test_a_token_that_is_too_likely_everywhere_fails(has_experts, logits):
    """One row of the output in thousands: on average no distance shows it."""
    in_file, exact, rounded = logits
    rounded += np.random.default_rng(6).normal(0, 0.2, exact.shape).astype(np.float32)
    in_file[:, 11] = exact.max() + 4
    expected = "its likeliest token after place 0 of heldout.jsonl, line 7 is 11, that of the merged model"
    assert expected in judge(*logits, has_experts=has_experts)


def test_other_experts_at_a_few_positions_pass_where_there_are_experts(logits):
    in_file, exact, _ = logits
    in_file[[8, 30]] = exact[[9, 31]]
    failure = judge(*logits)
    assert "its weights are not that model's" in failure
    assert judge(*logits, has_experts=True) is None
    in_file[:40] = exact[1:41]
    assert "its weights are not that model's" in judge(*logits, has_experts=True)
