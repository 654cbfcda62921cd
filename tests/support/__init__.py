"""What the tests of several members share. `tests/` is on pytest's path: any test imports `support.…`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
