"""Block formats against their peers: decode to float32 and encode, one thread, ratios from the same run.

Every result is compared with the peer's bit for bit before anything is timed. Calls take turns; the figure is the best
process time of each. ``SUBBYTE_SIMD`` chooses the level (``avx2`` is recorded beside the best one).

    SUBBYTE_BENCH_GGML=…/libggml-base.so python benches/python/block.py --types q4_k,iq2_xs --record
"""

from __future__ import annotations

import os

os.environ["SUBBYTE_NUM_THREADS"] = "1"

import argparse
import datetime
from typing import Any

import numpy as np
from common import interleaved, record
from peers import DECODE_ONLY, DIFFERENT_BYTES, Peer, peers

from subbyte import _native

COLUMNS = 4096
SIMPLE = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "TQ2_0")
"""Types whose decode is bound by memory in every implementation: to equal each peer, and to reach the write limit."""
FOURFOLD = ("Q2_K", "Q3_K", "Q5_0", "Q5_1", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "IQ1_S", "IQ1_M")
CODEBOOK = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
ENCODE_MUST = {"Q8_0": 5.0, "Q4_0": 3.0, "Q5_0": 3.0, "Q2_K": 3.0, "Q3_K": 3.0, "Q4_K": 3.0, "Q5_K": 3.0, "Q6_K": 3.0}
"""Ratios asked of the encoders without importance; 2 for all others."""


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array whose data starts at a 64-byte boundary, as subbyte allocates its results."""
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + n].view(dtype).reshape(shape)


def same_floats(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, NaN equal to NaN."""
    a, b = a.reshape(-1), b.reshape(-1)
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


def measure_decode(
    name: str, ggml: int, blocks: np.ndarray, out: np.ndarray, others: list[Peer], seconds: float, limit: float
) -> dict[str, Any]:
    """Millions of weights per second of each implementation, and the share of the write limit that ours reaches."""
    rows, columns = out.shape
    flat = out.reshape(-1).view(np.uint8)
    calls: dict[str, Any] = {"subbyte": lambda: _native.decode(name, blocks, columns, "float32", flat)}
    calls["subbyte"]()
    ours = out.copy()
    for peer in others:
        out.fill(0)
        got = peer.decode(ggml, name, blocks, out)
        if got is None:
            continue
        if not same_floats(got, ours):
            raise SystemExit(f"{name}: decode differs from {peer.name}")
        calls[peer.name] = lambda peer=peer: peer.decode(ggml, name, blocks, out)
    best = interleaved(calls, seconds, repeat=1 if rows > 1 else 200)
    speeds = {who: out.size / t / 1e6 for who, t in best.items()}
    return {"mw_s": speeds, "of_limit": speeds["subbyte"] / limit}


def measure_encode(
    name: str, ggml: int, x: np.ndarray, weights: np.ndarray | None, row_bytes: int, others: list[Peer], seconds: float
) -> dict[str, Any]:
    """Millions of weights per second of each implementation."""
    out = aligned((x.shape[0], row_bytes), np.uint8)
    w = None if weights is None else weights.view(np.uint8)
    flat = x.reshape(-1).view(np.uint8)
    calls: dict[str, Any] = {"subbyte": lambda: _native.encode(name, flat, "float32", x.shape[1], 1, w, out)}
    calls["subbyte"]()
    ours = out.copy()
    for peer in others:
        if peer.name in DECODE_ONLY:
            continue
        out.fill(0)
        got = peer.encode(ggml, name, x, weights, out)
        if got is None:
            continue
        if (peer.name, name) not in DIFFERENT_BYTES and not np.array_equal(
            np.asarray(got).view(np.uint8).ravel(), ours.ravel()
        ):
            raise SystemExit(f"{name}: encode{'' if weights is None else ' with importance'} differs from {peer.name}")
        calls[peer.name] = lambda peer=peer: peer.encode(ggml, name, x, weights, out)
    best = interleaved(calls, seconds)
    return {"mw_s": {who: x.size / t / 1e6 for who, t in best.items()}}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Ours over each peer."""
    return {who: row["mw_s"]["subbyte"] / v for who, v in row["mw_s"].items() if who != "subbyte"}


def judge_decode(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """The goal of a decode row and whether it is met ("" where nothing can be said)."""
    r = ratios(row)
    compiled = [v for who, v in r.items() if who != "gguf-py"]
    limit = row["of_limit"]
    if name in SIMPLE:
        return "≥ 1.0× each", ("" if not compiled else "yes" if min(compiled) >= 1.0 else "NO")
    ggml = [v for who, v in r.items() if who.startswith("ggml")]
    want = 8.0 if name in CODEBOOK else 2.0
    if name not in FOURFOLD + CODEBOOK:
        want = 1.0
    goal = f"≥ {want:g}× ggml, ≥ 1.5× libgguf, or ≥ 85 % of limit"
    met = limit >= 0.85 or (bool(ggml) and min(ggml) >= want and r.get("libgguf", 9e9) >= 1.5)
    return goal, "yes" if met else ("NO" if ggml else "")


def judge_encode(name: str, row: dict[str, Any], weighted: bool) -> tuple[str, str]:
    """The goal of an encode row: against the faster of libgguf and the stock ggml build."""
    r = ratios(row)
    want = 2.0 if weighted else ENCODE_MUST.get(name, 2.0)
    if name == "IQ1_M":
        r.pop("libgguf", None)  # another search
    compiled = [r[who] for who in ("libgguf", "ggml-stock") if who in r]
    return f"≥ {want:g}×", ("" if not compiled else "yes" if min(compiled) >= want else "NO")


def show(what: str, name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    limit = f"{100 * row['of_limit']:5.0f} %" if "of_limit" in row else "       "
    text = "  ".join(f"{who} {v:.2f}×" for who, v in ratios(row).items())
    print(
        f"{what:12} {name:8} {row['mw_s']['subbyte']:9.1f} Mw/s {limit}  {text}  [{row['goal']}: {row['met'] or '?'}]",
        flush=True,
    )


def main() -> None:
    """Measures the chosen types and prints, and optionally records, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="", help="comma-separated type names; all by default")
    parser.add_argument("--peers", default="", help="comma-separated peer names; all that are here by default")
    parser.add_argument("--ops", default="decode,small,encode,importance")
    parser.add_argument("--seconds", type=float, default=0.4, help="per call")
    parser.add_argument("--record", action="store_true", help="store the figures in benches/record")
    args = parser.parse_args()
    wanted = [t.upper() for t in args.types.split(",") if t]
    others = peers([p for p in args.peers.split(",") if p])
    ops = args.ops.split(",")
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((64, COLUMNS)) * 0.02).astype(np.float32)
    weights = (rng.random(COLUMNS) ** 2 + 0.01).astype(np.float32)
    big = aligned((4096, COLUMNS), np.float32)  # 64 MB
    small = aligned((1, COLUMNS), np.float32)  # 16 KB
    flat = big.reshape(-1).view(np.uint8)
    limit = big.size / interleaved({"fill": lambda: _native.stream_fill(flat, 1.5)}, 1.0)["fill"] / 1e6
    print(f"level {_native.level()}, write limit {limit:.0f} Mw/s = {limit * 4 / 1000:.1f} GB/s of float32")
    table: dict[str, Any] = {"level": _native.level(), "write_limit_mw_s": limit, "date": str(datetime.date.today())}
    rows: dict[str, Any] = {}
    failed = []
    for name, ggml, block, block_bytes, importance, decodes, encodes in _native.ggml_types():
        if (wanted and name not in wanted) or not encodes or name in ("F32", "F64", "Q8_1"):
            continue
        row_bytes = COLUMNS // block * block_bytes
        packed = np.zeros((64, row_bytes), np.uint8)
        need = weights if importance == "required" else None
        w = None if need is None else need.view(np.uint8)
        _native.encode(name, x.reshape(-1).view(np.uint8), "float32", COLUMNS, 1, w, packed)
        row: dict[str, Any] = {}
        if decodes and "decode" in ops:
            blocks = np.ascontiguousarray(np.tile(packed, (64, 1)))
            row["decode"] = measure_decode(name, ggml, blocks, big, others, args.seconds, limit)
        if decodes and "small" in ops:
            first = np.ascontiguousarray(packed[:1])
            row["small"] = measure_decode(name, ggml, first, small, others, args.seconds / 8, limit)
        slow = x[:8] if name.startswith("IQ") else x[:32]
        if "encode" in ops and importance != "required":
            row["encode"] = measure_encode(name, ggml, slow, None, row_bytes, others, args.seconds)
        if "importance" in ops and importance != "ignored":
            row["importance"] = measure_encode(name, ggml, slow, weights, row_bytes, others, args.seconds)
        for what, figures in row.items():
            decoding = what in ("decode", "small")
            judged = judge_decode(name, figures) if decoding else judge_encode(name, figures, what == "importance")
            figures["goal"], figures["met"] = judged if what != "small" else ("recorded beside", "")
            show(what, name, figures)
            if figures["met"] == "NO":
                failed.append(f"{what} {name}")
        rows[name] = row
    print("short of the goal: " + (", ".join(failed) or "none"))
    if args.record:
        table["rows"] = rows
        print(f"recorded in {record('block', _native.level(), table).name}")


if __name__ == "__main__":
    main()
