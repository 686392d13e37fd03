"""Checks that every checkpoint format has to pass, for random layers and for damaged ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

import subbyte
from subbyte.formats import checkpoint_format
from subbyte.planes import Plane, plane


def same_planes(found, expected):
    """Planes are the same bits: names, element types, shapes, elements."""
    assert sorted(found) == sorted(expected)
    for name, want in expected.items():
        want, got = plane(want), plane(found[name])
        assert (got.kind, got.shape) == (want.kind, want.shape), name
        assert got.data.tobytes() == want.data.tobytes(), name


def check_round_trip(id, planes, params):
    """Reading and writing give the same bytes, and rows decode alone as they do together; returns the form."""
    format = checkpoint_format(id)
    form = format.read(planes, params)
    same_planes(format.write(form, params), planes)
    values = form.values(slice(0, form.rows))
    assert values.shape == (form.rows, form.columns)
    start, stop = form.rows // 3, form.rows - 1
    assert np.array_equal(form.values(slice(start, stop)), values[start:stop], equal_nan=True)
    return form


def damaged(planes):
    """Layers of which a plane is missing, has another type, another shape, no elements, or an axis too many."""
    for name, value in planes.items():
        data, kind = plane(value)
        yield f"{name} missing", {n: p for n, p in planes.items() if n != name}
        others = {
            "type": Plane(np.zeros(data.shape, np.uint16), "U16"),
            "cut": Plane(data[..., :-1], kind) if data.ndim and data.shape[-1] > 1 else Plane(data[None, None], kind),
            "empty": Plane(data[..., :0] if data.ndim else data.reshape(1)[:0], kind),
            "axis": Plane(data[None, None, None], kind),
        }
        for what, other in others.items():
            yield f"{name} {what}", planes | {name: other}


def check_damage(id, planes, params, harmless=()):
    """Every damaged layer is refused by an error of ours that names a plane, but for the ``harmless`` damages."""
    for what, broken in damaged(planes):
        if what in harmless:
            continue
        with pytest.raises(subbyte.Error) as caught:
            subbyte.decode(id, broken, params=params)
        assert any(name in str(caught.value) for name in planes), f"{what}: {caught.value}"


#: What a hostile settings file may hold in place of a value.
HOSTILE = (None, -1, 0, 1, 3, 7, 9, 33, 10**30, 1.5, "", "x", "4", True, [], [4], {}, {"a": 1}, float("nan"))


def check_hostile_settings(id, planes, config, key="quantization_config"):
    """Whatever replaces a setting, decoding gives a matrix or an error of ours."""
    outcomes = set()
    for path in _paths(config):
        for value in HOSTILE:
            changed = json.loads(json.dumps(config))
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = value
            try:
                subbyte.decode(id, planes, params={key: changed})
                outcomes.add("read")
            except subbyte.Error:
                outcomes.add("refused")
    assert "refused" in outcomes


def _paths(value, before=()):
    if isinstance(value, dict):
        for key in value:
            yield (*before, key)
            yield from _paths(value[key], (*before, key))
