"""Bytes of numbers by torch dtype name."""

from __future__ import annotations

from hardware_profiles.errors import UnknownNameError

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of one element by torch dtype name; of ``float4_e2m1fn_x2`` one element is two numbers."""


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element of a torch dtype name; `UnknownNameError` lists the known ones."""
    if dtype not in DTYPE_BYTES:
        raise UnknownNameError("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


def operand_bytes(dtype: str) -> float:
    """Bytes of one number of a product's operands: as `dtype_bytes`, but 4 bits with a byte of scale per 16 numbers."""
    return 0.5 + 1 / 16 if dtype == "float4_e2m1fn_x2" else dtype_bytes(dtype)
