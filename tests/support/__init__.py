"""What the tests of several members share. `tests/` is on pytest's path: any test imports `support.…`."""
