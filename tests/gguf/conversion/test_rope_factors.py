"""RoPE's factors of Llama 3 and the powers behind them, to the bit: torch's float32, and llama.cpp's script."""

import random

import numpy as np
import pytest
from impruver_gguf.architectures.base.decoder import compute_llama3_factors
from impruver_gguf.architectures.base.float32_power import compute_power
from support.oracles import compute_rope_factors_with_llama_cpp

PUBLISHED = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
SHAPES = [  # head_dim, what differs from Llama 3.2's
    (64, {"original_max_position_embeddings": 8192}),
    (128, {"original_max_position_embeddings": 8192, "factor": 8.0}),
    (64, {"original_max_position_embeddings": 256}),
    (96, {"original_max_position_embeddings": 256, "factor": 8, "rope_theta": 10000}),
    (96, {"original_max_position_embeddings": 8192, "rope_theta": 1e6}),
    (80, {"original_max_position_embeddings": 4096, "low_freq_factor": 1, "high_freq_factor": 4}),
    (16, {"original_max_position_embeddings": 64}),
]


def draw_config(draw: random.Random) -> dict:
    rope = {
        "rope_theta": draw.choice([10000.0, 500000, draw.uniform(1e3, 1e7), draw.randint(1000, 10**7)]),
        "factor": draw.choice([8, 32.0, draw.uniform(1, 64)]),
        "original_max_position_embeddings": draw.choice([256, 8192, draw.randint(64, 20000)]),
        "low_freq_factor": draw.choice([1, 1.0, draw.uniform(0.5, 2)]),
        "high_freq_factor": draw.choice([4, 4.0, draw.uniform(2.5, 8)]),
    }
    return {"head_dim": draw.randrange(8, 258, 2), "rope_parameters": rope | {"rope_type": "llama3"}}


def test_factors_are_those_of_llama_cpps_script(llama_cpp_source):
    draw = random.Random(7)
    configs = [
        {"head_dim": head_dim, "rope_parameters": PUBLISHED | changes | {"rope_type": "llama3"}}
        for head_dim, changes in SHAPES
    ]
    configs += [draw_config(draw) for _ in range(500)]
    expected = compute_rope_factors_with_llama_cpp(llama_cpp_source, configs)
    for config, factors in zip(configs, expected, strict=True):
        found = list(compute_llama3_factors(config["rope_parameters"], config["head_dim"]))
        assert np.array_equal(found, np.float32(factors)), config


@pytest.mark.parametrize("base", [500000.0, 10000, 1.5, 0.75, 0.01, 3.7e18])
def test_powers_are_torchs(base):
    import torch

    for count in (1, 31, 32, 33, 64, 96, 128, 1000):
        exponents = np.random.default_rng(count).uniform(-1.9, 1.9, count).astype(np.float32)
        expected = (base ** torch.from_numpy(exponents)).numpy()
        assert np.array_equal(compute_power(base, exponents), expected), count
