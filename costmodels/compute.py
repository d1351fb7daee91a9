"""Seconds of one kernel on one device, by what bounds it: `products`, `attention`, and `streams` of memory."""

from costmodels.attention import FlashGeneration, attention_s, unfused_attention_s, unfused_attention_saved_bytes
from costmodels.dtypes import DTYPE_BYTES, dtype_bytes, operand_bytes
from costmodels.products import gemm_s
from costmodels.streams import MemoryBound, memory_bound_s, quantise_s

__all__ = [
    "DTYPE_BYTES",
    "FlashGeneration",
    "MemoryBound",
    "attention_s",
    "dtype_bytes",
    "gemm_s",
    "memory_bound_s",
    "operand_bytes",
    "quantise_s",
    "unfused_attention_s",
    "unfused_attention_saved_bytes",
]
