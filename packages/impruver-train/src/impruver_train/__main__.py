"""`python -m impruver_train`, which torchrun and accelerate launch."""

from impruver_train.cli import main

raise SystemExit(main())
