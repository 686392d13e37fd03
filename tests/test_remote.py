"""Checkpoints read by range requests: from good servers, from bad ones, from the Hub and from object stores."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import CONFIG, GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from server import Server, serve
from subbyte.io import stores
from subbyte.io.gguf import GgufFile, write_gguf
from subbyte.io.remote import FIRST, RemotePath, place
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries do not wait; the pauses they asked for."""
    pauses: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", pauses.append)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return pauses


def contents(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def large_gguf(path: Path, tokens: int = 150_000) -> Path:
    """A file with the vocabulary of a large model and one tensor beyond it."""
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": [f"token number {n}" for n in range(tokens)],
        "tokenizer.ggml.merges": [f"left{n} right{n}" for n in range(tokens)],
        "tokenizer.ggml.token_type": np.ones(tokens, np.int32),
    }
    write_gguf(path, metadata, {"a.weight": np.arange(12 << 20, dtype=np.float32).reshape(-1, 1024)})
    return path


@pytest.fixture
def sharded() -> Iterator[Server]:
    """A checkpoint of two shards with an index under ``models/tiny/``."""
    import tempfile

    with tempfile.TemporaryDirectory() as above:
        folder = checkpoint(Path(above) / "tiny")
        tensors = llama_tensors()
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        index: dict[str, str] = {}
        for number, part in enumerate((names[:9], names[9:]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            write_safetensors(folder / file, {name: tensors[name] for name in part})
            index |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        with serve(contents(folder, "models/tiny/")) as server:
            yield server


def test_gguf_with_a_large_vocabulary_needs_few_requests(tmp_path: Path) -> None:
    path = large_gguf(tmp_path / "large.gguf")
    with serve(contents(tmp_path)) as server:
        file, local = GgufFile(server.url + "large.gguf"), GgufFile(path)
        assert len(server.requests) <= 4  # for a header of 10 MB
        assert server.requests[0] == ("large.gguf", f"bytes=0-{FIRST - 1}")
        assert list(file.metadata["tokenizer.ggml.tokens"]) == list(local.metadata["tokenizer.ggml.tokens"])
        before = len(server.requests)
        assert np.array_equal(file.raw("a.weight"), local.raw("a.weight"))
        assert np.array_equal(file.read("a.weight", 4096, 100), local.read("a.weight", 4096, 100))
        tensor = local["a.weight"]
        assert [request for _, request in server.requests[before:]] == [
            f"bytes={tensor.offset}-{tensor.offset + tensor.nbytes - 1}",
            f"bytes={tensor.offset + 4096}-{tensor.offset + 4195}",
        ]


def test_safetensors_needs_one_or_two_requests(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "short.safetensors", {"a": np.zeros(1 << 20, np.float32)})
    many = {f"model.layers.{n}.a_tensor_with_a_long_name.weight": np.zeros(8, np.float32) for n in range(5000)}
    write_safetensors(tmp_path / "long.safetensors", many)
    with serve(contents(tmp_path)) as server:
        assert SafetensorsFile(server.url + "short.safetensors")["a"].nbytes == 4 << 20
        assert len(server.requests) == 1
        assert len(SafetensorsFile(server.url + "long.safetensors")) == 5000
        assert len(server.requests) == 3


def test_split_gguf_and_byte_order() -> None:
    container = GOLDEN / "container"
    with serve(contents(container)) as server:
        for name in ("csplit-00001-of-00003.gguf", "kv_be.gguf", "all_types.gguf"):
            file, local = GgufFile(server.url + name), GgufFile(container / name)
            assert list(file) == list(local)
            assert all(np.array_equal(file.raw(name), local.raw(name)) for name in local)
            assert file.paths == [server.url + Path(path).name for path in local.paths]


def test_inspect_open_and_convert_a_sharded_checkpoint(sharded: Server, tmp_path: Path) -> None:
    url = sharded.url + "models/tiny/"
    assert subbyte.inspect(url).parameters == sum(tensor.size for tensor in llama_tensors().values())
    weights = subbyte.open(url.rstrip("/"))
    assert weights.config == CONFIG
    name = "model.layers.1.mlp.up_proj.weight"
    assert np.array_equal(weights[name].decode(rows=slice(3, 5)), llama_tensors()[name][3:5])


@pytest.mark.parametrize("to", ["gguf", "gguf.q8_0", "gguf.q4_k_m"])
def test_convert_gives_the_bytes_of_a_local_conversion(tmp_path: Path, to: str) -> None:
    with serve(contents(SMALL_LLAMA, "some/small-llama/")) as server:
        report = subbyte.convert(server.url + "some/small-llama", tmp_path / "remote.gguf", to=to)
        again = subbyte.convert(server.url + "some/small-llama", tmp_path / "remote.gguf", to=to)
    assert str(report.src) == server.url + "some/small-llama/"
    assert again.unchanged
    subbyte.convert(SMALL_LLAMA, tmp_path / "local.gguf", to=to)
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_plan_reads_headers_only(sharded: Server, tmp_path: Path) -> None:
    sharded.files |= contents(SMALL_LLAMA, "small-llama/")
    write_gguf(tmp_path / "big.gguf", {"general.architecture": "llama", "llama.block_count": 1},
               {"output.weight": np.zeros((1 << 12, 1 << 10), np.float32)})  # fmt: skip
    sharded.files |= contents(tmp_path)
    for path, source in (("small-llama/", SMALL_LLAMA), ("big.gguf", tmp_path / "big.gguf")):
        found = subbyte.plan(sharded.url + path, to="gguf.q4_k_m")
        assert found.nbytes == subbyte.plan(source, to="gguf.q4_k_m").nbytes
        assert found.to_json()["src"] == sharded.url + path
    assert [asked for name, asked in sharded.requests if name == "big.gguf"] == [f"bytes=0-{FIRST - 1}"]


def test_convert_from_and_verify_against_a_remote_gguf(tmp_path: Path) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "small.gguf", to="gguf.bf16")
    subbyte.convert(tmp_path / "small.gguf", tmp_path / "local.gguf", to="gguf.q8_0")
    with serve(contents(tmp_path)) as server:
        subbyte.convert(server.url + "small.gguf", tmp_path / "remote.gguf", to="gguf.q8_0")
        assert subbyte.verify(tmp_path / "remote.gguf", server.url + "small.gguf").ok
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_command_line(sharded: Server, capsys: pytest.CaptureFixture[str]) -> None:
    from subbyte.cli import main

    assert main(["inspect", sharded.url + "models/tiny/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == sharded.url + "models/tiny/"
    assert main(["inspect", sharded.url + "models/none/"]) != 0
    assert sharded.url + "models/none/" in capsys.readouterr().err


def broken(answer: Callable[[Any], object], after: int = 0) -> Callable[[Any], bool]:
    """A server that answers with ``answer`` after that many good requests."""
    count = 0

    def misbehave(handler: Any) -> bool:
        nonlocal count
        count += 1
        if count <= after:
            return False
        answer(handler)
        return True

    return misbehave


DATA = bytes(range(256)) * 4096  # longer than the first request


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda h: h.answer(200, DATA), subbyte.IoError, "only the whole file"),
        (lambda h: h.answer(200, DATA, Content_Length="10"), None, ""),
        (lambda h: h.send_part(DATA, Content_Range="bytes 0-9/20"), subbyte.IoError, "the server sends 'bytes 0-9/20'"),
        (lambda h: h.send_part(DATA, Content_Range="bytes 5-262148/1048576"), subbyte.IoError, "asked for"),
        (lambda h: h.send_part(DATA, Content_Range="bytes 0-262143/*"), subbyte.IoError, "asked for"),
        (lambda h: h.send_part(DATA, Content_Range="nonsense"), subbyte.IoError, "asked for"),
        (lambda h: h.send_part(DATA, Content_Encoding="gzip"), subbyte.IoError, "encodes"),
        (lambda h: h.send_part(DATA, Content_Length="999999"), subbyte.IoError, "999999"),
        (lambda h: h.send_part(DATA, Content_Length="100"), subbyte.IoError, "262144"),
        (
            lambda h: h.answer(206, b"short", Content_Range="bytes 0-9/10", Content_Length="10"),
            subbyte.IoError,
            "5 of 10",
        ),
        (lambda h: h.answer(206, DATA[:9]), subbyte.IoError, "asked for"),
        (lambda h: h.answer(204), subbyte.IoError, "204"),
        (lambda h: h.answer(404), FileNotFoundError, "no such file"),
        (lambda h: h.answer(410), FileNotFoundError, "no such file"),
        (lambda h: h.answer(401), PermissionError, "access denied"),
        (lambda h: h.answer(403), PermissionError, "access denied"),
        (lambda h: h.answer(418), subbyte.IoError, "418"),
        (lambda h: h.answer(503), subbyte.IoError, "after 4 requests: the server says 503"),
        (lambda h: h.answer(302, Location="file:///etc/passwd"), subbyte.IoError, "file"),
        (lambda h: h.answer(302, Location="ftp://127.0.0.1/x"), subbyte.IoError, "ftp"),
        (lambda h: h.answer(302, Location=h.path), subbyte.IoError, "302"),
        (lambda h: h.connection.shutdown(socket.SHUT_RDWR), subbyte.IoError, "after 4 requests"),
        (lambda h: h.wfile.write(b"nonsense\r\n\r\n"), subbyte.IoError, "after 4 requests"),
    ],
)
def test_bad_servers(answer: Callable[[Any], object], error: type[Exception] | None, message: str) -> None:
    with serve({"m.gguf": DATA}) as server:
        server.misbehave = broken(answer)
        path = place(server.url + "m.gguf?token=secret")
        assert isinstance(path, RemotePath)
        if error is None:
            assert path.open().size == 10  # what is announced is what counts; the rest is not read
            return
        with pytest.raises(error, match=message) as caught:
            path.open()
        assert isinstance(caught.value, subbyte.IoError)
        assert caught.value.file == server.url + "m.gguf"
        assert "secret" not in str(caught.value)


def test_a_slow_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(stores, "TIMEOUT", 0.2)
    release = threading.Event()
    with serve({"m.gguf": DATA}) as server:
        server.misbehave = broken(lambda handler: release.wait(20))
        with pytest.raises(subbyte.IoError, match=r"after 4 requests: .*timed out"):
            GgufFile(server.url + "m.gguf")
        release.set()


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.send_part(DATA, ETag='"other"'),
        lambda h: h.send_part(DATA, Last_Modified="Thu, 01 Jan 1970 00:00:00 GMT"),
        lambda h: h.send_part(DATA + b"more"),
    ],
)
def test_a_file_that_changes_is_refused(change: Callable[[Any], object]) -> None:
    with serve({"m.gguf": DATA}) as server:
        server.misbehave = broken(change, after=1)
        path = place(server.url + "m.gguf")
        assert isinstance(path, RemotePath)
        file = path.open()
        file.seal()
        with pytest.raises(subbyte.CorruptError, match="changed while it was read") as caught:
            file.read_range(len(DATA) - 5, 5)
        assert caught.value.file == server.url + "m.gguf"


def test_errors_cross_the_extension_module_unchanged(tmp_path: Path) -> None:
    large_gguf(tmp_path / "large.gguf")
    with serve(contents(tmp_path)) as server:
        server.misbehave = broken(lambda h: h.answer(403), after=1)
        with pytest.raises(PermissionError, match="access denied") as caught:
            GgufFile(server.url + "large.gguf")
        assert isinstance(caught.value, subbyte.IoError)
        server.misbehave = lambda handler: False
        file = GgufFile(server.url + "large.gguf")
        server.files["large.gguf"] += b"x"
        with pytest.raises(subbyte.CorruptError, match="changed while it was read"):
            file.raw("a.weight")


def test_interrupts_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_gguf(tmp_path / "large.gguf")
    with serve(contents(tmp_path)) as server:
        path = place(server.url + "large.gguf")
        assert isinstance(path, RemotePath)
        path.open()

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(path.store, "fetch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            GgufFile(path)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again(status: int, no_pauses: list[float]) -> None:
    with serve({"m.gguf": DATA}) as server:
        answers = iter([True, True, True])
        server.misbehave = lambda h: next(answers, False) and (h.answer(status, Retry_After="7") or True)
        path = place(server.url + "m.gguf")
        assert isinstance(path, RemotePath)
        assert path.open().read_range(0, len(DATA)) == DATA
    assert no_pauses == [7, 7, 7]


def _ends_early(data: bytes, most: int, **headers: str) -> Callable[[Any], bool]:
    """A server whose connections end after ``most`` bytes."""

    def misbehave(handler: Any) -> bool:
        start, stop = handler.range()
        whole = min(stop, len(data)) - start
        handler.send_response(206)
        for name, value in {
            "Content-Length": str(whole),
            "Content-Range": f"bytes {start}-{start + whole - 1}/{len(data)}",
            **headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[start : start + min(whole, most)])
        handler.close_connection = True
        return True

    return misbehave


def test_a_range_goes_on_after_what_came_of_it(no_pauses: list[float]) -> None:
    data = np.random.default_rng(1).bytes((8 << 20) + 17)
    with serve({"m.gguf": data}) as server:
        store = stores.HttpStore(server.url)
        server.misbehave = _ends_early(data, 1 << 20)
        assert store.fetch("m.gguf", 5, len(data)) == stores.Part(data[5:], len(data), "")
        starts = [int(asked.removeprefix("bytes=").split("-")[0]) for _, asked in server.requests]
        assert starts == [5 + (number << 20) for number in range(9)]
        assert no_pauses == [stores.PAUSE] * 8
        server.requests.clear()
        server.misbehave = _ends_early(data, (1 << 20) - 1)  # too little to count: as if nothing had come
        with pytest.raises(subbyte.IoError, match=r"after 4 requests: the connection ended after 1048575 of 8388608"):
            store.fetch("m.gguf", 0, 8 << 20)
        assert [asked for _, asked in server.requests] == ["bytes=0-8388607"] * 4


def test_parts_of_different_files_are_not_joined(no_pauses: list[float]) -> None:
    old, new = (np.random.default_rng(seed).bytes(4 << 20) for seed in (1, 2))
    with serve({"m.gguf": new}) as server:
        first = _ends_early(old, 2 << 20, ETag='"old"')
        server.misbehave = lambda handler: len(server.requests) == 1 and first(handler)
        part = stores.HttpStore(server.url).fetch("m.gguf", 0, 4 << 20)
        assert part.data == new
        assert [asked for _, asked in server.requests] == [
            "bytes=0-4194303", "bytes=2097152-4194303", "bytes=0-4194303",
        ]  # fmt: skip


def test_redirects_keep_the_range_and_drop_credentials() -> None:
    with serve({"m.gguf": DATA}) as other, serve({}) as server:
        server.misbehave = broken(lambda h: h.answer(302, Location=other.url + "m.gguf"))
        store = stores.HttpStore(server.url, headers={"Authorization": "Bearer secret"})
        assert RemotePath(store, "m.gguf").open().read_range(1000, 10) == DATA[1000:1010]
        assert server.headers[0]["authorization"] == "Bearer secret"
        assert "authorization" not in other.headers[0]
        assert other.headers[0]["range"] == f"bytes=0-{FIRST - 1}"


def test_small_and_empty_files() -> None:
    with serve({"a.gguf": b"", "b.gguf": b"GGUF"}) as server:
        with pytest.raises(subbyte.Error, match=r"a\.gguf"):
            GgufFile(server.url + "a.gguf")
        with pytest.raises(subbyte.Error, match=r"b\.gguf"):
            GgufFile(server.url + "b.gguf")
        server.misbehave = broken(lambda h: h.answer(200, (GOLDEN / "container" / "kv_le.gguf").read_bytes()))
        assert GgufFile(server.url + "b.gguf").metadata  # short enough to be sent whole


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "http://h/x.safetensors", "a/b.safetensors"])
def test_shards_stay_under_the_base(shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    with serve({"m/model.safetensors.index.json": index}) as server:
        with pytest.raises(subbyte.FormatError, match="only files beside the index") as caught:
            SafetensorsFile(server.url + "m/")
        assert caught.value.file == server.url + "m/model.safetensors.index.json"
        assert {path for path, _ in server.requests} == {"m/model.safetensors", "m/model.safetensors.index.json"}


def test_errors_of_small_files_name_the_address(tmp_path: Path) -> None:
    files = contents(SMALL_LLAMA, "m/") | {"m/config.json": b"{"}
    with serve(files) as server:
        with pytest.raises(subbyte.FormatError) as caught:
            subbyte.convert(server.url + "m", tmp_path / "x.gguf", to="gguf")
        assert caught.value.file == server.url + "m/config.json"
        del server.files["m/config.json"]
        with pytest.raises(subbyte.FormatError, match=r"no config\.json") as caught:
            subbyte.convert(server.url + "m", tmp_path / "x.gguf", to="gguf")
        assert caught.value.file == server.url + "m/"


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("ftp://host/m.gguf", subbyte.UnsupportedError, "ftp://"),
        ("file:///etc/m.gguf", subbyte.UnsupportedError, "file://"),
        ("http:///m.gguf", subbyte.ArgumentError, "no host"),
        ("http://user:word@host/m.gguf", subbyte.ArgumentError, "passwords"),
        ("http://[1/m.gguf", subbyte.ArgumentError, "not an address"),
        ("http://host:99999/m.gguf", subbyte.ArgumentError, "not an address"),
        ("s3:///m.gguf", subbyte.ArgumentError, "no bucket"),
        ("none/such.gguf", FileNotFoundError, "No such file"),
        ("", subbyte.ArgumentError, "empty"),
    ],
)
def test_addresses_that_are_none(location: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        subbyte.inspect(location)
    assert isinstance(caught.value, subbyte.Error)
    assert "word@" not in str(caught.value)


def test_names_are_quoted() -> None:
    data = (GOLDEN / "container" / "kv_le.gguf").read_bytes()
    with serve({"my folder/50% #1?.gguf": data}) as server:
        file = GgufFile(server.url + "my%20folder/50%25%20%231%3F.gguf")
        assert file.metadata
        assert server.requests[0][0] == "my folder/50% #1?.gguf"


def hub(server: Server, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the Hub at ``server``: huggingface_hub reads its settings when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_ENDPOINT": server.url.rstrip("/"), "NO_PROXY": "127.0.0.1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "subbyte.cli", *arguments],
        env=kept | settings, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    prefix = f"org/small-llama/resolve/{COMMIT}/"
    home = str(tmp_path / "home")
    with serve(contents(SMALL_LLAMA, prefix)) as server:
        done = hub(server, "inspect", "org/small-llama@main", "--json", HF_TOKEN="hf_secret", HF_HOME=home)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["path"] == server.url + prefix
        asked = [path for path, _ in server.requests if "org/" in path]
        assert list(dict.fromkeys(path for path in asked if not path.endswith(".json"))) == [
            "api/models/org/small-llama/revision/main",
            prefix + "model.safetensors",
        ]
        sent = zip(server.requests, server.headers, strict=True)
        assert all(headers["authorization"] == "Bearer hf_secret" for (path, _), headers in sent if "org/" in path)
        done = hub(server, "convert", "hf://org/small-llama@main", str(tmp_path / "hub.gguf"), "--to", "gguf.q8_0",
                   HF_HOME=home)  # fmt: skip
        assert done.returncode == 0, done.stderr
        done = hub(server, "inspect", "org/small-llama@other", HF_HOME=home)
        assert done.returncode != 0
        assert "RevisionNotFound" in done.stderr
        assert "Traceback" not in done.stderr
        before = len(server.requests)
        done = hub(server, "inspect", "org/small-llama@main", HF_HUB_OFFLINE="1", HF_HOME=home)
        assert done.returncode != 0
        assert "org/small-llama@main" in done.stderr
        cached = Path(home) / "hub" / "models--org--small-llama"
        for name, data in contents(SMALL_LLAMA, f"snapshots/{COMMIT}/").items():
            (cached / name).parent.mkdir(parents=True, exist_ok=True)
            (cached / name).write_bytes(data)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / "main").write_text(COMMIT)
        done = hub(server, "convert", "org/small-llama@main", str(tmp_path / "offline.gguf"), "--to", "gguf.q8_0",
                   HF_HUB_OFFLINE="1", HF_HOME=home)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == before
    subbyte.convert(SMALL_LLAMA, tmp_path / "local.gguf", to="gguf.q8_0")
    expected = (tmp_path / "local.gguf").read_bytes()
    assert (tmp_path / "hub.gguf").read_bytes() == expected
    assert (tmp_path / "offline.gguf").read_bytes() == expected


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(subbyte.UnsupportedError, match="pip install"):
        subbyte.inspect("org/model@main")


def test_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with serve(contents(SMALL_LLAMA, "bucket/small-llama/")) as server:
        settings = {"AWS_ENDPOINT_URL": server.url.rstrip("/"), "AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true",
                    "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        server.misbehave = _with_date
        subbyte.convert("s3://bucket/small-llama/", tmp_path / "remote.gguf", to="gguf.q8_0")
        assert subbyte.inspect("s3://bucket/small-llama/model.safetensors").nbytes > 0
        with pytest.raises(FileNotFoundError) as caught:
            subbyte.inspect("s3://bucket/none.gguf")
        assert isinstance(caught.value, subbyte.IoError)
        assert caught.value.file == "s3://bucket/none.gguf"
    subbyte.convert(SMALL_LLAMA, tmp_path / "local.gguf", to="gguf.q8_0")
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def _with_date(handler: Any) -> bool:
    """Object stores always say when an object changed."""
    from urllib.parse import unquote, urlsplit

    data = handler.state.files.get(unquote(urlsplit(handler.path).path).lstrip("/"))
    if data is not None:
        handler.send_part(data, Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
    return data is not None


def test_object_store_through_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = "s3"
        store: dict[str, Any] = {}  # noqa: RUF012  as the class it extends has it
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("s3://"))

    monkeypatch.setitem(sys.modules, "obstore", None)
    fsspec.register_implementation("s3", Bucket, clobber=True)
    for name, data in contents(SMALL_LLAMA).items():
        Bucket().pipe_file(f"bucket/small-llama/{name}", data)
    subbyte.convert("s3://bucket/small-llama", tmp_path / "remote.gguf", to="gguf.q8_0")
    subbyte.convert(SMALL_LLAMA, tmp_path / "local.gguf", to="gguf.q8_0")
    assert (tmp_path / "remote.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    with pytest.raises(FileNotFoundError):
        subbyte.inspect("s3://bucket/none.gguf")


def test_object_store_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(subbyte.UnsupportedError, match="pip install"):
        subbyte.inspect("s3://bucket/m.gguf")
