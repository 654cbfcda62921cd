"""`python -m impruver_compose` is `impruver-compose`."""

from impruver_compose.cli import program

raise SystemExit(program())
