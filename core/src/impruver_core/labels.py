"""`IGNORE_INDEX`, trained roles, `count_target_tokens(labels)`. New leaf."""

LEARNED_ROLES = ("assistant", "function_call")


UNLEARNED = -100
