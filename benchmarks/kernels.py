"""How well kernel times are predicted, on published timings: ``python -m benchmarks.kernels GEMM.csv ATTENTION.csv``.

GEMM.csv has ``device,gemm_dtype,m,n,k,ms``, ATTENTION.csv ``device,batch_size,isl,num_heads,kv,head_dim,ms``: timings
of the ai-dynamo/aiconfigurator database. Prints the tables of docs/kernels.md.

What was timed is a layer, not a kernel. Products of 8 and 4 bits cast their bfloat16 activations first (`quantise_s`);
attention rotates queries and keys and writes the cache before (one more pass over queries, keys and values).
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from costmodels.compute import attention_s, gemm_s, memory_bound_s, quantise_s
from costmodels.units import MILLI, TERA
from hardware_profiles.cluster import Device
from hardware_profiles.load import load_cluster, names

PROFILES = {
    "A100-SXM4-80GB": "a100-80gb",
    "H100-80GB-HBM3": "h100-sxm",
    "H200-SXM": "h200-sxm",
    "B200": "b200-sxm",
    "B300": "b300",
    "GB200": "gb200",
}
"""Beginning of the profile's name by the device's in the files; a device without a profile is left out."""

DTYPES = {"bfloat16": "bfloat16", "fp8": "float8_e4m3fn", "nvfp4": "float4_e2m1fn_x2"}

TENSORRT_A100 = 0.50
"""Of the peak: TensorRT-LLM's attention on A100, long sequences of these timings. The profile has FlashAttention-2's,
which training runs use."""

DEEP_GEMM = (
    (1, 64, 2112, 7168, 206), (1, 64, 7168, 16384, 336), (1, 128, 7168, 16384, 645), (1, 4096, 2112, 7168, 1058),
    (1, 4096, 24576, 1536, 990), (1, 4096, 32768, 512, 590), (1, 4096, 7168, 16384, 1358), (1, 4096, 4096, 7168, 1304),
    (1, 4096, 7168, 2048, 1025), (4, 8192, 4096, 7168, 1297), (4, 8192, 7168, 2048, 1099), (8, 4096, 4096, 7168, 1288),
    (8, 4096, 7168, 2048, 1093),
)  # fmt: skip
"""(groups, rows of each, n, k, TFLOP/s) of fp8 products on H800, whose units and clock are H100's: DeepGEMM, README
of version a6d97a1."""


@dataclass(frozen=True)
class Row:
    """One timing beside its prediction."""

    device: str
    kind: str
    """dtype of a product, or what attention it is."""
    bands: tuple[str, ...]
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Errors:
    """Of the rows of one cell of a table."""

    num_rows: int
    median: float
    p90: float
    bias: float
    """Median of the signed errors."""


def devices() -> dict[str, Device]:
    """The devices of the files that there is a profile of."""
    found = {}
    for device, start in PROFILES.items():
        profile = next((name for name in names() if name.startswith(start)), None)
        if profile:
            found[device] = load_cluster(profile, 1).device
    return found


def gemm_rows(path: Path) -> Iterator[Row]:
    """Products of the file with their prediction, casts included."""
    known = devices()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            device, dtype = known.get(row["device"]), DTYPES[row["gemm_dtype"]]
            if device is None or dtype not in dict(device.peak_flop_per_s):
                continue
            m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
            seconds = gemm_s(device, dtype, m=m, n=n, k=k)
            if dtype != "bfloat16":
                seconds += quantise_s(device, dtype, m * k)
            yield Row(row["device"], row["gemm_dtype"], gemm_bands(m, n, k), float(row["ms"]) * MILLI, seconds)


def gemm_bands(m: int, n: int, k: int) -> tuple[str, ...]:
    """Where a product is counted: the shapes of training, and the skinny ones of tensor parallelism."""
    if m < 1024:
        return ("m < 1,024",)
    return ("m >= 1,024", "n or k < 2,048" if min(n, k) < 2048 else "n and k >= 2,048")


def attention_rows(path: Path) -> Iterator[Row]:
    """Forward attention of the file with its prediction, the pass before included."""
    known = devices()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            device = known[row["device"]]
            if row["device"].startswith("A100"):
                device = replace(device, efficiency=replace(device.efficiency, attention_forward=TENSORRT_A100))
            batch, length, heads, kv_heads, head_dim = (
                int(row[key]) for key in ("batch_size", "isl", "num_heads", "kv", "head_dim")
            )
            shape = {"batch": batch, "heads": heads, "q_len": length, "kv_len": length, "head_dim": head_dim}
            seconds = attention_s(device, "bfloat16", **shape, causal=True, backward=False)
            seconds += memory_bound_s(device, 2 * 2 * batch * length * (heads + 2 * kv_heads) * head_dim)
            measured_s = float(row["ms"]) * MILLI
            band = next(name for limit, name in LENGTHS if length <= limit)
            duration = "1 ms and more" if measured_s >= MILLI else "below 1 ms"
            yield Row(row["device"], "causal forward", (band, duration), measured_s, seconds)


LENGTHS = ((2048, "length to 2,048"), (8192, "length to 8,192"), (16_384, "length to 16,384"))


def summary(rows: Sequence[Row]) -> Errors:
    """Median and 90th percentile of the absolute errors, and the median of the signed."""
    sizes = sorted(abs(row.error) for row in rows)
    return Errors(
        num_rows=len(sizes),
        median=statistics.median(sizes),
        p90=sizes[int(0.9 * (len(sizes) - 1))],
        bias=statistics.median(row.error for row in rows),
    )


def cells(rows: Sequence[Row]) -> dict[tuple[str, str, str], Errors]:
    """Errors by (device, kind, band)."""
    found: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for band in row.bands:
            found[row.device, row.kind, band].append(row)
    return {key: summary(part) for key, part in sorted(found.items())}


def table(rows: Sequence[Row]) -> str:
    """`cells` as Markdown."""
    lines = ["| device | kernel | shapes | rows | median | 90th percentile | bias |", "|---|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {device} | {kind} | {band} | {e.num_rows:,} | {e.median:.1%} | {e.p90:.1%} | {e.bias:+.1%} |"
        for (device, kind, band), e in cells(rows).items()
    ]
    return "\n".join(lines)


def deep_gemm_table() -> str:
    """Products and grouped products of DeepGEMM as Markdown."""
    device = devices()["H100-80GB-HBM3"]
    lines = [
        "| groups | m | n | k | measured TFLOP/s | predicted | error of the time |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for groups, m, n, k, measured in DEEP_GEMM:
        seconds = gemm_s(device, "float8_e4m3fn", batch=groups, m=m, n=n, k=k, grouped=groups > 1)
        predicted = 2 * groups * m * n * k / seconds / TERA
        lines.append(
            f"| {groups} | {m:,} | {n:,} | {k:,} | {measured:,} | {predicted:,.0f} | {measured / predicted - 1:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    print(table(list(gemm_rows(Path(sys.argv[1])))), end="\n\n")
    print(table(list(attention_rows(Path(sys.argv[2])))), end="\n\n")
    print(deep_gemm_table())


if __name__ == "__main__":
    main()
