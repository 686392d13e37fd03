"""Tables that formats share and that no rule gives, see NOTICE for where they are from.

* ``hadamard.npz``: Hadamard matrices by their size, a bit an element in rows, 1 for -1, high bits first.
* ``higgs_grids.npz``: the grids of HIGGS, float32 (points, p), called ``p<p>_n<points>``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def tables(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of the file ``<name>.npz``."""
    with files(__name__).joinpath(f"{name}.npz").open("rb") as file, np.load(file) as found:
        return dict(found)
