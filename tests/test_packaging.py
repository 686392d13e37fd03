"""What is installed and shipped, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest

import subbyte

PACKAGE = Path(subbyte.__file__).parent


def test_import_is_light_and_fast(run_python):
    code = """
import sys, time
start = time.perf_counter()
import subbyte
elapsed = time.perf_counter() - start
heavy = {"torch", "cupy", "ml_dtypes", "rich", "ray", "huggingface_hub", "matplotlib", "gguf", "safetensors"}
print(elapsed, sorted(heavy & set(sys.modules)))
"""
    runs = [run_python(code).split(maxsplit=1) for _ in range(5)]
    assert {modules.strip() for _, modules in runs} == {"[]"}
    assert min(float(elapsed) for elapsed, _ in runs) <= 0.150


def test_first_use_imports_numpy_only(run_python):
    code = """
import sys, time
start = time.perf_counter()
import numpy
numpy_only = time.perf_counter() - start
before = set(sys.modules)
start = time.perf_counter()
import subbyte
subbyte.decode, subbyte.encode, subbyte.open, subbyte.codec_ids()
elapsed = time.perf_counter() - start
new = {m.partition(".")[0] for m in set(sys.modules) - before}
print(elapsed, *sorted(m for m in new if m not in sys.stdlib_module_names and m not in ("numpy", "subbyte")))
"""
    runs = [run_python(code).split() for _ in range(5)]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(elapsed) for elapsed, *_ in runs) <= 0.150


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_every_module_can_be_the_first(run_python):
    names = [file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("*.py")]
    modules = {".".join(name.parts).removesuffix(".__init__") for name in names}
    modules = sorted(name for name in modules if not name.startswith("subbyte.integrations."))  # they import others
    code = """
import importlib, os, sys
import numpy
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert run_python(code, *modules) == ""


def test_import_creates_and_starts_nothing(run_python, tmp_path):
    code = """
import os, threading
import subbyte
subbyte.codec_ids()
print(threading.active_count(), len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1)
print(sorted(k for k in os.environ if "THREADS" in k and k not in BEFORE))
"""
    code = "import os; BEFORE = set(os.environ)\n" + code
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    # NumPy's linear algebra starts threads of its own unless told otherwise.
    one = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    assert run_python(code, PYTHONDONTWRITEBYTECODE="1", **home, **one).split("\n") == ["1 1", "[]", ""]
    assert list(tmp_path.iterdir()) == []


def test_public_names():
    for name in subbyte.__all__:
        assert getattr(subbyte, name) is not None
        assert name in dir(subbyte)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        subbyte.nonsense  # noqa: B018


def test_convert_is_the_function_whatever_was_imported_first(run_python):
    code = "import subbyte.convert, subbyte; print(callable(subbyte.convert), callable(subbyte.inspect))"
    assert run_python(code) == "True True\n"


def test_version_is_that_of_the_crate(root):
    manifest = (root / "Cargo.toml").read_text()
    assert re.search(rf'^version = "{re.escape(subbyte.__version__)}"$', manifest, re.MULTILINE)


def test_typing_marker_and_stub_are_installed():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_native.pyi").is_file()


def test_wheel_would_be_small():
    compressed = sum(
        len(zlib.compress(f.read_bytes())) for f in PACKAGE.rglob("*") if f.suffix != ".pyc" and f.is_file()
    )
    assert compressed <= 10e6


def test_only_numpy_is_required():
    try:
        requires = importlib.metadata.requires("subbyte") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("subbyte is not installed but found through PYTHONPATH")
    required = [r for r in requires if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in required] == ["numpy"]
    extras = set(importlib.metadata.metadata("subbyte").get_all("Provides-Extra"))
    assert extras >= {"cli", "hub", "torch", "cuda12", "cuda13", "ray", "report", "generate", "bench", "test", "dev"}
    files = [str(f) for f in importlib.metadata.files("subbyte")]
    assert not [f for f in files if f.startswith(("cuda", "tests", "benches", "docs"))]


def test_source_distribution(root, tmp_path):
    maturin = shutil.which("maturin", path=str(Path(sys.executable).parent)) or shutil.which("maturin")
    if maturin is None:
        pytest.skip("maturin is not installed: pip install '.[dev]'")
    subprocess.run([maturin, "sdist", "-o", str(tmp_path)], cwd=root, check=True, timeout=300)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.stat().st_size <= 10e6
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "Cargo.toml", "LICENSE-MIT", "LICENSE-APACHE", "NOTICE"} <= names
    assert {"rust/core/src/lib.rs", "rust/io/src/lib.rs", "rust/python/src/lib.rs"} <= names
    assert {"python/subbyte/__init__.py", "python/subbyte/py.typed"} <= names
    assert {f"cuda/{p.relative_to(root / 'cuda')}" for p in (root / "cuda").rglob("*") if p.is_file()} <= names
    assert not [n for n in names if n.startswith(("tests/golden", "examples/small-llama"))]
    assert not [n for n in names if n.endswith((".so", ".pyc"))]


def test_actions_are_pinned_by_commit(root):
    uses = re.findall(
        r"uses: (\S+.*)$", "\n".join(f.read_text() for f in (root / ".github").rglob("*.yml")), re.MULTILINE
    )
    assert len(uses) > 10
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", entry) for entry in uses), uses
