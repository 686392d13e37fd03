"""Speed of every block format beside its peers: ``python benches/python/block.py --record``.

One thread, CPU time, ours and the peers taking turns in the same run. Decoding goes to f32, into 64 MB (what the goals
are about, beside the write limit: streaming stores over the same memory) and into one buffer of 16 KB (the cost of an
empty call subtracted from everyone). Encoding runs with and without importance. Weights are normally distributed,
ternary for the ternary types. Every result is compared with the peers' bit for bit before anything is timed.
``SUBBYTE_SIMD`` chooses the level; benches/README.md says where the peers come from.
"""

from __future__ import annotations

import os

os.environ["SUBBYTE_NUM_THREADS"] = "1"  # before the library starts its threads

import argparse
import sys
from typing import Any

import goals
import numpy as np
import peers
from common import Time, interleaved, record, today
from peers import TYPES, Subbyte, row_bytes

from subbyte import _native
from subbyte.arrays import empty

COLUMNS = 4096
BUFFERS = {"64MB": 16 << 20, "16KB": 4 << 10}
TERNARY = ("TQ1_0", "TQ2_0", "Q2_0")
Row = dict[str, Any]


def main() -> None:
    """Measures the chosen types; prints and records them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated ggml types (default: all)")
    parser.add_argument("--peers", default=",".join(peers.NAMES), help="comma-separated peers (default: all)")
    parser.add_argument("--what", default="decode,encode", help="decode, encode or both")
    parser.add_argument("--buffer", default=",".join(BUFFERS), help="destinations of decode (default: both)")
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU time for each call of a row")
    parser.add_argument("--record", action="store_true", help="update the rows of this processor in benches/record")
    options = parser.parse_args()
    kinds = [t.upper() for t in options.types.split(",")] if options.types else list(TYPES)
    if unknown := set(kinds) - set(TYPES):
        parser.error(f"no ggml type is called {', '.join(sorted(unknown))}")

    ours = Subbyte()
    others = [peer for name in options.peers.split(",") if (peer := peers.load(name))]
    versions = {peer.name: peer.version for peer in (ours, *others)}
    print(f"level {_native.level()}; " + "; ".join(f"{name} {version}" for name, version in versions.items()))
    below = []
    for kind in kinds:
        *_, importance, decodes, encodes = TYPES[kind]
        if not encodes:
            continue
        bench, rows = _Type(kind, ours, others, options.seconds), {}
        if decodes and "decode" in options.what:
            rows |= {f"decode {buffer}": bench.decode(buffer) for buffer in options.buffer.split(",")}
        if "encode" in options.what and importance != "required":
            rows["encode"] = bench.encode(importance=False)
        if "encode" in options.what and importance != "ignored":
            rows["encode+importance"] = bench.encode(importance=True)
        below += [f"{kind} {what}" for what, row in rows.items() if row["verdict"] == "below"]
        if options.record:
            record("block", _native.level(), {"versions": versions, "rows": {kind: rows}})
    print("below what they must reach: " + (", ".join(below) or "none"))


class _Type:
    """The benches of one type."""

    def __init__(self, kind: str, ours: Subbyte, others: list[Any], seconds: float) -> None:
        self.kind, self.ours, self.others, self.seconds = kind, ours, others, seconds
        self.random = np.random.default_rng(0)
        # The searches of the K and IQ types take the peers up to a microsecond per weight.
        rows = 64 if TYPES[kind][2] <= 128 or kind.startswith("TQ") else 16
        self.x = self._weights(rows)
        self.importance = self.random.random(COLUMNS, np.float32) + np.float32(0.01)

    def _weights(self, rows: int) -> peers.Array:
        x = empty((rows, COLUMNS), np.dtype(np.float32))
        if self.kind in TERNARY:
            # Normal weights would become mostly zeros, which some processors write faster than anything else.
            x[:] = self.random.choice(np.float32([-0.02, 0, 0.02]), x.shape)
        else:
            x[:] = self.random.normal(0, 0.02, x.shape)
        return x

    def encode(self, *, importance: bool) -> Row:
        weights = self.importance if importance else None
        out = empty((len(self.x), row_bytes(self.kind, COLUMNS)), np.dtype(np.uint8))
        calls = self._calls("encoder", self.x, weights, out, out=out)
        times = interleaved(calls, self.seconds)
        what = "encode+importance" if importance else "encode"
        return self._row(what, self.x.size, times, goals.encode_goals(self.kind, importance=importance))

    def decode(self, buffer: str) -> Row:
        n = BUFFERS[buffer]
        out = empty((n,), np.dtype(np.float32))
        out.fill(0)
        blocks = self._blocks(n)
        calls = self._calls("decoder", blocks, out, COLUMNS, out=out)
        if buffer == "64MB":
            calls["write limit"] = lambda: _native.stream_fill(out.view(np.uint8), 1.0)
            times = interleaved(calls, self.seconds)
            return self._row("decode 64MB", n, times, goals.decode_goals(self.kind))
        # One call takes about as long as the foreign call itself: measure that, and subtract it.
        nothing = self._calls("decoder", blocks[:0], out[:0], COLUMNS, out=None)
        times = interleaved(calls | {f"{name} (empty)": call for name, call in nothing.items()}, self.seconds)
        for name in nothing:
            times[name] = times[name].minus(times.pop(f"{name} (empty)"))
        return self._row("decode 16KB", n, times, [])

    def _blocks(self, n: int) -> peers.Array:
        """Encoded weights for ``n`` outputs, of a million different ones: fewer would teach the peers' branches."""
        rows = min(n, 1 << 20) // COLUMNS
        unlike = np.empty((rows, row_bytes(self.kind, COLUMNS)), np.uint8)
        weights = self.importance if TYPES[self.kind][4] == "required" else None
        self.ours.encoder(self.kind, self._weights(rows), weights, unlike)()
        blocks = empty((n // COLUMNS, unlike.shape[1]), np.dtype(np.uint8))
        for i in range(0, len(blocks), rows):
            blocks[i : i + rows] = unlike
        return blocks

    def _calls(self, how: str, *arguments: Any, out: peers.Array | None) -> dict[str, peers.Call]:
        """Ours and the peers' calls; with ``out``, after comparing their results."""
        calls = {}
        for peer in (self.ours, *self.others):
            if how == "encoder" and self.kind in goals.COPIES and peer is not self.ours:
                continue
            if call := getattr(peer, how)(self.kind, *arguments):
                calls[peer.name] = call
        if out is None:
            calls.pop("gguf-py", None)  # has no empty call
            return calls
        want = None
        for name, call in calls.items():
            if how == "encoder" and name == "ggml-native":
                continue  # contracts multiplications and additions: other bytes
            out.view(np.uint8).fill(0xA5)
            result = call()
            got = (out if result is None else result).reshape(-1).view(np.uint8)
            want = got.copy() if want is None else want
            if not np.array_equal(got, want):
                at = int(np.flatnonzero(got != want)[0])
                sys.exit(f"{self.kind} {how}: {name} gives other bytes than subbyte, first at {at} of {want.size}")
        if how == "encoder":
            calls.pop("ggml-native", None)
        return calls

    def _row(self, what: str, weights: int, times: dict[str, Time], wanted: list[goals.Goal]) -> Row:
        rates = {name: time.rates(weights) for name, time in times.items()}
        ours, limit = rates["subbyte"]["best"], rates.pop("write limit", None)
        ratios = {name: round(ours / rate["best"], 3) for name, rate in rates.items() if name != "subbyte"}
        share = round(ours / limit["best"], 3) if limit else None
        verdict = goals.row_verdict(wanted, ratios, share)
        row: Row = {"date": today(), "mw_s": rates, "ratio": ratios, "verdict": verdict}
        if limit:
            row |= {"write_limit_mw_s": limit, "limit_share": share}
        peers_text = "  ".join(f"{name} {rates[name]['best']:.5g} ({ratio:.2f}×)" for name, ratio in ratios.items())
        limit_text = f"  {share:.0%} of limit {limit['best']:.0f}" if limit else ""
        print(f"{self.kind:8}{what:18}{ours:9.5g} Mw/s  {peers_text}{limit_text}  {verdict or ''}", flush=True)
        return row


if __name__ == "__main__":
    main()
