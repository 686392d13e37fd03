"""Compact3D: indices of Gaussians into codebooks (arXiv 2311.18159, github.com/UCDvision/compact3d).

The original writes three files: the indices of all parameters (``kmeans_inds.bin``), their settings
(``kmeans_args.npy``) and the codebooks (``kmeans_centers.pth``). Their contents as planes and parameters:

================  ==============  =========  ===========================================================================
plane             type            shape      content
================  ==============  =========  ===========================================================================
kmeans_inds_bin   U8              [bytes]    indices, high bits first, without gaps, zero bits at the end
centers_NAME      F32, F16, BF16  [K, n]     values of the parameter NAME
================  ==============  =========  ===========================================================================

``params`` lists the parameters (``dc``, ``sh``, ``scale``, ``rot`` …); ``n_bits`` is the width of every index and
``total_len`` the number of bits, so that there are total_len / (n_bits * parameters) Gaussians. The indices of the
first parameter for every Gaussian come first, then those of the second one. ``tensor`` says which parameter is decoded,
to [Gaussians, n]: row g is the centre of index g. The width depends on the number of Gaussians, not on K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subbyte import planes as _planes
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Format, setting_int, setting_names, setting_text
from subbyte.formats.vector.tables import check_setting, finite
from subbyte.forms import Form
from subbyte.forms.vector import Additive, BitIndices, Book
from subbyte.forms.vector.indices import pack_bits
from subbyte.planes import Plane


class Compact3d(Format):
    """The format ``compact3d``."""

    id = "compact3d"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        names, tensor = _names(params)
        bits = setting_int(params, "n_bits")
        total = setting_int(params, "total_len")
        packed = _planes.get(planes, "kmeans_inds_bin", "U8", (None,))
        if not 0 < bits <= 32:
            raise FormatError(f"setting 'n_bits' is {bits}: expected 1 to 32")
        rows, rest = divmod(total, bits * len(names))
        if rest or rows < 1 or packed.shape[0] != -(-total // 8):
            raise FormatError(
                f"plane 'kmeans_inds_bin' has {packed.shape[0]} bytes: 'total_len' is {total}, for {len(names)} "
                f"parameters of {bits} bits"
            )
        check_setting(params, "gaussians", rows, "'total_len' makes it")
        centers = finite(planes, f"centers_{tensor}", shape=(None, None))
        if not centers.data.size:
            raise FormatError(f"plane 'centers_{tensor}' has shape {list(centers.shape)}: it is empty")
        entries, length = centers.shape
        indices = BitIndices(packed.data, bits, (rows, 1), names.index(tensor) * rows * bits)
        book = Book(indices, Plane(centers.data.reshape(1, 1, entries, 1, length), centers.kind))
        form = Additive((rows, length), (book,))
        largest = int(indices.unpack().max())
        if largest >= entries:
            raise FormatError(f"plane 'centers_{tensor}' has {entries} rows: an index is {largest}")
        return form

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        names, tensor = _names(params)
        if not isinstance(form, Additive) or len(form.books) != 1 or form.scales is not None:
            return super().write(form, params)
        book = form.books[0]
        bits = setting_int(params, "n_bits", book.indices.bits)
        if names != [tensor] or book.indices.shape != (form.rows, 1) or book.entries.shape[:2] != (1, 1):
            raise UnsupportedError(
                "one weight is the only parameter of a Compact3D file, and has one table for its rows"
            )
        if bits < book.indices.bits or book.block != (1, form.columns):
            raise UnsupportedError(f"indices of {book.indices.bits} bits into rows: 'n_bits' is {bits}")
        planes = {
            "kmeans_inds_bin": Plane(pack_bits(book.indices.unpack(), bits), "U8"),
            f"centers_{tensor}": Plane(book.entries.data.reshape(-1, form.columns), book.entries.kind),
        }
        try:
            self.read(planes, params)
        except FormatError as e:
            raise UnsupportedError(f"the settings are for another tensor: {e.message}") from e
        return planes


def _names(params: Mapping[str, Any]) -> tuple[list[str], str]:
    """The parameters of the file, and the one that is meant."""
    names = setting_names(params, "params")
    if not names or len(set(names)) < len(names):
        raise FormatError(f"setting 'params' is {names}: expected the different names of the parameters")
    if "tensor" not in params and len(names) > 1:
        raise ArgumentError(f"params lacks 'tensor', the parameter to decode: one of {', '.join(names)}")
    return names, setting_text(params, "tensor", names[0], allowed=names)


FORMATS = {"compact3d": Compact3d()}
