"""`python -m impruver_compose` is `impruver-compose`."""

from impruver_compose.cli import main

raise SystemExit(main())
