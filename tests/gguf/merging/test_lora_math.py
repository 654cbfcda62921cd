"""Values that are rounded right away are those of the sum in torch's order, rounded."""

from dataclasses import replace

import numpy as np
import pytest
from impruver_gguf.conversion.gguf_writer import TENSOR_TYPES, encode_tensors
from impruver_gguf.merging import lora_math
from impruver_gguf.weights.lazy_tensor import LazyTensor

ROWS, COLUMNS = 97, 130


def make_tensor(values):
    return LazyTensor(values.shape, lambda start, stop: values[start:stop])


def make_case(rank, size, transposed, *, seed=0):
    """W of all magnitudes, its last columns zero; A and B such that the update is of about `size`."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((ROWS, COLUMNS)) * 10.0 ** random.integers(-9, 4, (ROWS, 1))
    weight[:, -5:] = 0
    outputs, inputs = (COLUMNS, ROWS) if transposed else (ROWS, COLUMNS)
    a, b = random.standard_normal((rank, inputs)), random.standard_normal((outputs, rank)) * size
    b[:3] = 0
    return [make_tensor(values.astype(np.float32)) for values in (weight.astype(np.float16), a, b)]


def as_bits(values):
    return values.view(f"u{values.itemsize}").tolist()


@pytest.mark.parametrize("outtype", ["f16", "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 16, 200])
@pytest.mark.parametrize("size", [1e-42, 1e-8, 1e-3, 300.0])
def test_the_same_bits(size, rank, transposed, outtype):
    rounding, case = TENSOR_TYPES[outtype].round, make_case(rank, size, transposed)
    merged = lora_math.add_lora(*case, 1.7, transposed)
    assert as_bits(merged.read.read_rounded(rounding, 3, 90)) == as_bits(rounding(merged.read(3, 90)))


def test_few_values_are_summed_again(monkeypatch):
    """Where an update is as small as trained ones are, all but a few values are known from BLAS's sum."""
    again = []
    multiply_at = lora_math._multiply_at
    monkeypatch.setattr(
        lora_math, "_multiply_at", lambda b, a, *at: [again.append(len(at[0])), multiply_at(b, a, *at)][1]
    )
    random = np.random.default_rng(1)
    weight, a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((400, 300), (16, 300), (400, 16)))
    case = map(make_tensor, (weight / 20, a / 20, b / 100))
    merged = lora_math.add_lora(*case, 2.0, False)
    merged.read.read_rounded(TENSOR_TYPES["f16"].round, 0, 400)
    assert 0 < sum(again) < weight.size / 50


def test_what_is_no_number_or_too_large_stays_so():
    weight, a, b = make_case(4, 1e-3, False)
    values = weight.read(0, ROWS)
    values[5, 5], values[6, 6], values[7, 7] = np.nan, np.inf, 1e6
    merged = lora_math.add_lora(make_tensor(values), a, b, 1.0, False)
    rounded = merged.read.read_rounded(TENSOR_TYPES["f16"].round, 0, ROWS)
    assert not np.isfinite(rounded[[5, 6, 7], [5, 6, 7]]).any()
    assert np.isfinite(np.delete(rounded, [5, 6, 7], axis=0)).sum() > 0.9 * rounded.size - COLUMNS * 3


def test_what_is_computed_of_a_merged_tensor_is_computed():
    """Of a tensor that another one is made of by `replace`, as by architectures that scale a weight."""
    merged = lora_math.add_lora(*make_case(4, 1e-3, False), 1.0, False)
    scaled = replace(merged, read=lambda start, stop: merged.read(start, stop) * 2)
    (_, encoded), *_ = encode_tensors({"w": scaled}, {"w": TENSOR_TYPES["f16"]})
    assert np.array_equal(encoded[:9], (merged.read(0, 9) * 2).astype(np.float16))
