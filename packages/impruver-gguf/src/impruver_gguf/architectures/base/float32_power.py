"""Powers in float32 as torch computes them, to the bit: RoPE's frequencies come from them, and files are compared.

torch takes SLEEF's powf (u10: within 1 ULP) for all values that fill two vector registers, and the C library's for the
rest. SLEEF's is x ** y = exp(y ln x), where both functions work on pairs of float32 whose sum is the value; the
constants are its own.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

LOG_SERIES = (0.240320354700088500976562, 0.285112679004669189453125, 0.400007992982864379882812)
EXP_SERIES = (
    *(0.00136324646882712841033936, 0.00836596917361021041870117, 0.0416710823774337768554688),
    *(0.166665524244308471679688, 0.499999850988388061523438),
)


class Pair(NamedTuple):
    """A value as an unevaluated sum of two float32, or arrays of them."""

    high: Any
    low: Any


TWO_THIRDS = Pair(np.float32(0.66666662693023681640625), np.float32(3.69183861259614332084311e-09))
LN2 = Pair(np.float32(0.69314718246459960938), np.float32(-1.904654323148236017e-09))
LN2_PARTS = np.float32(0.693145751953125), np.float32(1.428606765330187045e-06)  # the first has few bits
LOG2_E = np.float32(1.4426950408889634)


def compute_power(base: float, exponents: np.ndarray) -> np.ndarray:
    """Compute base ** exponents (count,), both in float32; the base is positive."""
    vectors = exponents.size - exponents.size % _get_values_at_once()
    base = np.float32(base)
    by_sleef = _exponentiate(_multiply(_compute_logarithm(base), exponents[:vectors]))
    by_c = [base**exponent for exponent in exponents[vectors:]]  # numpy's scalars go to the C library
    return np.array([*by_sleef, *by_c], np.float32)


@cache
def _get_values_at_once() -> int:
    """How many float32 torch works on at once: two registers full, on this processor."""
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return 32 if all(features.get(f"AVX512{kind}") for kind in ("F", "BW", "DQ", "VL")) else 16


def _compute_logarithm(value: np.float32) -> Pair:
    """ln(m * 2**e) = e ln 2 + 2 artanh((m - 1) / (m + 1)), with m from 0.75 to 1.5."""
    exponent = np.floor(np.log2(np.float64(value * np.float32(1 / 0.75))))
    mantissa, one = np.float32(np.float64(value) * 2.0**-exponent), np.float32(1)
    x = _divide(_sum_exactly(-one, mantissa), _sum_exactly(one, mantissa))
    square = _multiply_pairs(x, x)
    series = np.float32(LOG_SERIES[0])
    for coefficient in LOG_SERIES[1:]:
        series = _fma(series, square.high, coefficient)
    series = _add_pairs(_multiply(square, series), TWO_THIRDS)
    result = _add_smaller(_multiply(LN2, np.float32(exponent)), Pair(x.high * np.float32(2), x.low * np.float32(2)))
    return _add_smaller(result, _multiply_pairs(_multiply_pairs(square, x), series))


def _exponentiate(power: Pair) -> np.ndarray:
    """e**power = 2**q * e**rest, with q whole."""
    whole = np.rint((power.high + power.low) * LOG2_E)
    for part in LN2_PARTS:
        product = whole * -part
        total = _sum_exactly(power.high, product)
        power = Pair(total.high, total.low + power.low)
    high = power.high + power.low
    rest = Pair(high, (power.high - high) + power.low)
    series = np.float32(EXP_SERIES[0])
    for coefficient in EXP_SERIES[1:]:
        series = _fma(rest.high, series, coefficient)
    product = rest.high * rest.high
    square = Pair(product, _fma(rest.high + rest.high, rest.low, _fma(rest.high, rest.high, -product)))
    result = _add_smaller(rest, _multiply(square, series))
    one = np.float32(1)
    high = one + result.high
    return (high + (((one - high) + result.high) + result.low)) * np.exp2(whole)


def _fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once: the product of two float32 is exact in float64."""
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64) + c).astype(np.float32)


def _sum_exactly(a: Any, b: Any) -> Pair:
    high = a + b
    other = high - a
    return Pair(high, (a - (high - other)) + (b - other))


def _add_pairs(a: Pair, b: Pair) -> Pair:
    total = _sum_exactly(a.high, b.high)
    return Pair(total.high, total.low + (a.low + b.low))


def _add_smaller(a: Pair, b: Pair) -> Pair:
    """a + b where b is the smaller of the two."""
    high = a.high + b.high
    return Pair(high, (((a.high - high) + b.high) + a.low) + b.low)


def _multiply(a: Pair, b: Any) -> Pair:
    high = a.high * b
    return Pair(high, _fma(a.low, b, _fma(a.high, b, -high)))


def _multiply_pairs(a: Pair, b: Pair) -> Pair:
    high = a.high * b.high
    return Pair(high, _fma(a.high, b.low, _fma(a.low, b.high, _fma(a.high, b.high, -high))))


def _divide(a: Pair, b: Pair) -> Pair:
    inverse = np.float32(1) / b.high
    high = a.high * inverse
    error = _fma(-b.low, inverse, _fma(-b.high, inverse, 1))
    return Pair(high, _fma(high, error, _fma(a.low, inverse, _fma(inverse, a.high, -high))))
