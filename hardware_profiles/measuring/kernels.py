"""The kernels that are timed on one device, each as a function without arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from hardware_profiles.measuring.accelerator import Accelerator
from hardware_profiles.samples import Measurement

Call = Callable[[], object]

FLOAT32_BYTES = 4
_NORM_WIDTH = 4096


def usable_dtypes(device: Accelerator) -> list[str]:
    """Names of the dtypes whose products the device can time, the one for training first."""
    wanted = ("float32", "bfloat16") if device.is_cpu else ("bfloat16", "float16", "float32")
    usable = []
    for name in wanted:
        try:
            matrix = torch.ones(64, 64, device=device.device, dtype=getattr(torch, name))
            (matrix @ matrix).sum().item()
        except RuntimeError:
            continue
        usable.append(name)
    if device.library == "nccl" and torch.cuda.get_device_capability()[0] >= 8:
        usable.append("tfloat32")
    return usable


def kernel(device: Accelerator, what: Measurement) -> Call:
    """The kernel that ``what`` names, with its operands in place; `RuntimeError` (of torch) where they do not fit."""
    makers = {
        "launch": _launch,
        "pointwise": _pointwise,
        "norm": _norm,
        "optimizer": _optimizer,
        "gemm": _gemm,
        "overlap_alone": _gemm,
        "overlap_busy": _gemm,
        "grouped_gemm": _grouped_gemm,
        "attention_forward": _attention_forward,
        "attention_backward": _attention_backward,
        "host_link": _host_link,
    }
    return makers[what.kind](device, what)


def operand_bytes(what: Measurement) -> int:
    """Memory that the kernel's operands take."""
    if what.kind == "gemm" or what.kind.startswith("overlap"):
        m, n, k = what.shape
        return FLOAT32_BYTES * (m * n + n * k + m * k)
    if what.kind == "grouped_gemm":
        groups, m, n, k = what.shape
        return FLOAT32_BYTES * groups * (m * n + n * k + m * k)
    if what.kind.startswith("attention"):
        batch, heads, length, head_dim = what.shape
        return FLOAT32_BYTES * 10 * batch * heads * length * head_dim
    return what.num_bytes


def work(what: Measurement) -> float:
    """FLOP or bytes: measurements of one kind and dtype grow with it."""
    product = 1.0
    for side in what.shape:
        product *= side
    if what.kind.startswith("attention"):
        product *= what.shape[2]
    return product * max(what.num_bytes, 1)


def _tensor(device: Accelerator, *shape: int, dtype: str = "float32") -> torch.Tensor:
    # Normal numbers: constant operands toggle fewer bits, and a power-limited device clocks higher than in training.
    return torch.randn(shape, device=device.device, dtype=getattr(torch, dtype.replace("tfloat32", "float32")))


def _launch(device: Accelerator, what: Measurement) -> Call:
    single = _tensor(device, 1)
    return lambda: single.add_(1.0)


def _pointwise(device: Accelerator, what: Measurement) -> Call:
    a, b, out = (torch.ones(what.num_bytes // 3 // FLOAT32_BYTES, device=device.device) for _ in range(3))
    return lambda: torch.add(a, b, out=out)


def _norm(device: Accelerator, what: Measurement) -> Call:
    rows = torch.ones(max(1, what.num_bytes // 2 // FLOAT32_BYTES // _NORM_WIDTH), _NORM_WIDTH, device=device.device)
    weight, bias = _tensor(device, _NORM_WIDTH), _tensor(device, _NORM_WIDTH)
    return lambda: F.layer_norm(rows, (_NORM_WIDTH,), weight, bias)


def _optimizer(device: Accelerator, what: Measurement) -> Call:
    parameter = torch.nn.Parameter(torch.ones(what.num_bytes // 7 // FLOAT32_BYTES, device=device.device))
    parameter.grad = torch.ones_like(parameter)
    return torch.optim.AdamW([parameter], fused=True).step


def _gemm(device: Accelerator, what: Measurement) -> Call:
    m, n, k = what.shape
    a, b = _tensor(device, m, k, dtype=what.dtype), _tensor(device, k, n, dtype=what.dtype)
    out = torch.empty(m, n, device=device.device, dtype=a.dtype)
    tf32 = what.dtype == "tfloat32"

    def call() -> None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.mm(a, b, out=out)

    return call


def _grouped_gemm(device: Accelerator, what: Measurement) -> Call:
    groups, m, n, k = what.shape
    a, b = _tensor(device, groups, m, k, dtype=what.dtype), _tensor(device, groups, k, n, dtype=what.dtype)
    out = torch.empty(groups, m, n, device=device.device, dtype=a.dtype)
    return lambda: torch.bmm(a, b, out=out)


def _attention_forward(device: Accelerator, what: Measurement) -> Call:
    query, key, value = (_tensor(device, *what.shape, dtype=what.dtype) for _ in range(3))

    def call() -> torch.Tensor:
        with torch.no_grad():
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return call


def _attention_backward(device: Accelerator, what: Measurement) -> Call:
    query, key, value = (_tensor(device, *what.shape, dtype=what.dtype).requires_grad_() for _ in range(3))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    gradient = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True)


def _host_link(device: Accelerator, what: Measurement) -> Call:
    host = torch.empty(what.num_bytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(what.num_bytes, dtype=torch.uint8, device=device.device)
    return lambda: target.copy_(host, non_blocking=True)
