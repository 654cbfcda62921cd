"""Keeps libraries from speaking between a tool's own lines."""

import logging
import warnings

MODULES = "(transformers|peft|torch|accelerate|bitsandbytes)"


def quiet_libraries(*names: str, errors_only: bool = False) -> None:
    """Turns off progress bars, and the warnings that libraries have for each other.

    `names`: the libraries to import for that, `datasets` and `transformers`. `errors_only` turns off their other
    warnings as well, and the errors that `datasets` logs, as it raises them besides.
    """
    if "datasets" in names:
        import datasets

        datasets.disable_progress_bars()
        if errors_only:
            datasets.logging.set_verbosity(logging.CRITICAL)
    if "transformers" in names:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        if errors_only:
            transformers_logging.set_verbosity_error()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for further packages, whatever the weights
        # transformers' word on its own default, for each class that is not called …ForCausalLM, such as GPT-2's
        modeling = logging.getLogger("transformers.modeling_utils")
        modeling.addFilter(lambda record: "loss_type=None" not in record.getMessage())
        warnings.filterwarnings("ignore", category=Warning if errors_only else FutureWarning, module=MODULES)
