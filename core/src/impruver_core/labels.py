"""Labels of token rows: which of their tokens a model is trained on."""

from collections.abc import Sequence

TRAINED_ROLES = ("assistant", "function_call")
IGNORE_INDEX = -100  # the label of a token that is not trained on; torch's cross entropy passes over it


def count_target_tokens(labels: Sequence[int]) -> int:
    """How many tokens of a row are trained on. The first never is: there is nothing to predict it from."""
    return len(labels) - labels.count(IGNORE_INDEX) - (labels[0] != IGNORE_INDEX) if labels else 0


def find_target_positions(labels: Sequence[int]) -> list[int]:
    """The positions of a row's target tokens; the logits that predict the token at `position` are at `position - 1`."""
    return [position for position, label in enumerate(labels) if position and label != IGNORE_INDEX]
