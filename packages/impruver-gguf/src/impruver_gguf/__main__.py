"""`python -m impruver_gguf`."""

from impruver_gguf.cli import main

raise SystemExit(main())
