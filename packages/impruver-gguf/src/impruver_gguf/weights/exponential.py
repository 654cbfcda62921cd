"""The exponential function in float32, bit by bit as torch computes it.

torch's CPU builds call Intel's MKL for it, whose last bit is not that of the nearest float32 in one value of a hundred.
This is MKL's arithmetic where a CPU has AVX-512: x = n * ln(2) / 32 + r, exp(x) = 2^(n / 32) * (1 + r + r^2 * p(r)).
"""

import numpy as np

STEPS = 32  # of a power of two, in a table
_POWERS = 2.0 ** (np.arange(STEPS) / STEPS)
_ROUNDED = _POWERS.astype(np.float32)
_RELATIVE_ERRORS = ((_POWERS - _ROUNDED) / _ROUNDED).astype(np.float32)
_LN2 = np.float32(np.log(2))
_LN2_REST = np.float32(np.log(2) - np.float64(_LN2))
_LOG2_E = np.float32(np.log2(np.e))
_SQUARE, _CUBE = np.float32(0.50001466), np.float32(0.16667156)  # of the polynomial, fitted to 0 ≤ r ≤ ln(2) / 32


def compute_exp(values: np.ndarray) -> np.ndarray:
    """Compute e to the power of float32 or float16 values of any shape, in their precision."""
    exponents = np.clip(values.astype(np.float32), -150, 150)  # beyond them it is 0 or infinity
    steps = np.floor(np.nan_to_num(exponents.astype(np.float64)) * _LOG2_E * STEPS)
    whole, index = np.divmod(steps.astype(np.int64), STEPS)
    powers = (steps / STEPS).astype(np.float32)
    rest = np.abs(_multiply_add(-powers, _LN2_REST, _multiply_add(-powers, _LN2, exponents)))
    polynomial = _multiply_add(rest, _CUBE, _SQUARE)
    less_one = _multiply_add(rest * rest, polynomial, _RELATIVE_ERRORS[index] + rest)
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(_multiply_add(less_one, _ROUNDED[index], _ROUNDED[index]), whole).astype(values.dtype)


def _multiply_add(one: np.ndarray, other: np.ndarray, summand: np.ndarray) -> np.ndarray:
    """Compute one * other + summand, rounded to float32 once, as a processor's fused instruction does."""
    with np.errstate(invalid="ignore"):
        return (one.astype(np.float64) * other + summand).astype(np.float32)
