"""The error hierarchy."""

import errno
import pickle

import pytest

import subbyte
from subbyte import errors


def test_one_base_and_the_builtin_classes_that_users_expect():
    for name in set(errors.__all__) - {"SubbyteWarning"}:
        assert issubclass(getattr(subbyte, name), subbyte.Error)
    assert issubclass(subbyte.ArgumentError, ValueError)
    assert issubclass(subbyte.NonFiniteError, ValueError)
    assert issubclass(subbyte.IoError, OSError)


def test_message_names_the_place():
    e = subbyte.CorruptError("ends too early", file="m.gguf", tensor="a.weight", byte=64)
    assert str(e) == "m.gguf: tensor 'a.weight': ends too early (at byte 64)"
    assert (e.file, e.tensor, e.byte, e.row, e.column) == ("m.gguf", "a.weight", 64, None, None)
    assert str(subbyte.NonFiniteError("is NaN", row=3, column=0)) == "row 3, column 0: is NaN"


@pytest.mark.parametrize(
    ("number", "builtin"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.ENOSPC, OSError),
        (errno.ETIMEDOUT, OSError),
    ],
)
def test_io_errors_are_builtin_errors_with_errno(number, builtin):
    e = subbyte.IoError.from_errno(number, "refused", "a/b", "t")
    assert isinstance(e, builtin)
    assert isinstance(e, subbyte.Error)
    assert (e.errno, e.filename, e.tensor, str(e)) == (number, "a/b", "t", "a/b: tensor 't': refused")


def test_io_error_without_errno():
    e = subbyte.IoError.from_errno(None, "refused")
    assert type(e) is subbyte.IoError
    assert (e.errno, str(e)) == (None, "refused")


@pytest.mark.parametrize(
    "error",
    [
        subbyte.NonFiniteError("is NaN", file="f", tensor="t", row=1, column=2),
        subbyte.IoError.from_errno(errno.ENOENT, "missing", "f"),
        subbyte.IoError.from_errno(errno.ENOSPC, "full", "f", "t"),
    ],
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)
