"""The exponential function against torch's, which llama.cpp's script calls."""

import numpy as np
import pytest
import torch
from impruver_gguf.weights.exponential import compute_exp

EACH = np.arange(1 << 16, dtype=np.uint32)
VALUES = {
    "every bfloat16": (EACH << 16).view(np.float32),
    "every float16": EACH.astype(np.uint16).view(np.float16),
    "float32": np.random.default_rng(0).normal(0, 4, 200_000).astype(np.float32),
}


@pytest.mark.unit
@pytest.mark.parametrize("name", VALUES)
def test_as_torch_computes_it(name):
    values = VALUES[name]
    expected, computed = torch.exp(torch.from_numpy(values)).numpy(), compute_exp(values)
    assert computed.dtype == values.dtype
    if torch.backends.mkl.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability():
        assert np.array_equal(expected, computed, equal_nan=True)
    else:  # another library's last bit may be another
        assert np.allclose(expected, computed, rtol=2 * np.finfo(values.dtype).eps, atol=0, equal_nan=True)
