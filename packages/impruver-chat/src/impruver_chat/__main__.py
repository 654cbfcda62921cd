"""`python -m impruver_chat`."""

from impruver_chat.cli import main

raise SystemExit(main())
