"""What a conversion will do, before it does it: types, sizes, classes, memory, time."""

import subbyte.convert  # noqa: F401  # the two import each other: this order works whichever is asked for first
