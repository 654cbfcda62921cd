"""`IGNORE_INDEX`, trained roles, `count_target_tokens(labels)`. New leaf."""

TRAINED_ROLES = ("assistant", "function_call")


IGNORE_INDEX = -100
