"""How many examples Hypothesis tries: few and always the same ones, or with `make test-models` many at random."""

import os

from hypothesis import settings

TIMES = int(os.environ.get("BACE_TEST_MODELS", "1"))


def examples(usual: int) -> int:
    return usual * TIMES


def settle() -> None:
    """No example has a time limit: it would measure the machine."""
    default = settings.get_profile("default")
    at_random = TIMES > 1
    settings.register_profile(
        "bace",
        max_examples=examples(default.max_examples),
        deadline=None,
        derandomize=not at_random,
        print_blob=at_random,
    )
    settings.load_profile("bace")
