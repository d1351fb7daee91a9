"""Joint forward + backward ATen graphs by `make_fx` on fake tensors, with the repeated blocks as opaque calls.

Three passes, each over fake tensors only:

1. `observe`: run the model once eagerly; every *distinct* block call is run, an equal one is answered with empty
   tensors of the right shapes. So cost does not grow with depth.
2. `trace_block`: one joint graph per distinct block call.
3. `trace_outer`: one joint graph of the whole model in which each block call is a single ``meshwright::block`` node.

``make_fx`` is used rather than AOT export because it keeps the module of every node, forward and backward, when given
``record_module_stack`` and ``preserve_node_meta`` (autograd's sequence numbers tie a backward node to its forward one).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.logging_utils import setup_stacktrace_preservation_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from planner.capture.blocks import call_key


@dataclass(frozen=True)
class TensorLike:
    """What is needed to make an empty tensor again."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorLike:
        return TensorLike(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)

    def empty(self, *, requires_grad: bool | None = None) -> torch.Tensor:
        out = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        return out.requires_grad_(self.requires_grad if requires_grad is None else requires_grad)


@dataclass(frozen=True)
class BlockCall:
    """One distinct call of a block: everything needed to trace it and to answer for it."""

    module: nn.Module
    args: Any
    """``(args, kwargs)`` with tensors replaced by `TensorLike`."""
    output: Any
    """Pytree of the outputs, tensors as `TensorLike`."""

    @property
    def input_likes(self) -> list[TensorLike]:
        return _likes(self.args)

    @property
    def output_likes(self) -> list[TensorLike]:
        return _likes(self.output)


@dataclass(frozen=True)
class Observed:
    """Result of `observe`."""

    calls: tuple[BlockCall, ...]
    keys: Mapping[Hashable, int]
    """(structure key, call key) -> index into ``calls``."""


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _likes(tree: Any) -> list[TensorLike]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, TensorLike)]


def _as_likes(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, TensorLike.of, tree)


def _as_tensors(tree: Any, **kwargs: Any) -> Any:
    return pytree.tree_map_only(TensorLike, lambda like: like.empty(**kwargs), tree)


@contextlib.contextmanager
def replaced_forwards(blocks: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Any]) -> Iterator[None]:
    """Give every block another ``forward`` for the time of the context."""
    for fqn, block in blocks.items():
        block.__dict__["forward"] = make(fqn, block)
    try:
        yield
    finally:
        for block in blocks.values():
            block.__dict__.pop("forward", None)


def observe(
    run: Callable[[], torch.Tensor], blocks: Mapping[str, nn.Module], structure: Mapping[str, Hashable]
) -> Observed:
    """Run the model once; see the module docstring. ``run`` returns the loss of one microbatch on fake tensors."""
    calls: list[BlockCall] = []
    keys: dict[Hashable, int] = {}

    def make(fqn: str, block: nn.Module) -> Any:
        original = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (structure[fqn], call_key(args, kwargs))
            if key not in keys:
                likes = _as_likes((args, kwargs))
                output = original(*args, **kwargs)
                keys[key] = len(calls)
                calls.append(BlockCall(module=block, args=likes, output=_as_likes(output)))
                return output
            return _as_tensors(calls[keys[key]].output)

        return forward

    with replaced_forwards(blocks, make):
        run()
    return Observed(calls=tuple(calls), keys=keys)


@dataclass(frozen=True)
class JointGraph:
    """A joint graph and what its placeholders and results stand for."""

    graph: fx.Graph
    params: Mapping[str, fx.Node]
    inputs: tuple[fx.Node, ...]
    """Tensor inputs, in pytree order."""
    diff_inputs: tuple[fx.Node, ...]
    """Those of ``inputs`` that receive a gradient."""
    outputs: tuple[fx.Node, ...]
    """Results that require a gradient."""
    param_grads: Mapping[str, fx.Node]
    """Parameter -> its gradient, for those that have one."""


def trace_block(call: BlockCall, params: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> JointGraph:
    """Joint graph of one block call: outputs, and the gradients of parameters and inputs for given output gradients."""
    args, kwargs = _as_tensors(call.args, requires_grad=False)
    tensors = _tensors((args, kwargs))
    differentiable = [like.requires_grad for like in call.input_likes]
    for tensor, needs in zip(tensors, differentiable, strict=True):
        tensor.requires_grad_(needs)
    grads = [like.empty(requires_grad=False) for like in call.output_likes if like.requires_grad]
    _, spec = pytree.tree_flatten((args, kwargs))
    leaves = pytree.tree_leaves((args, kwargs))
    slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def joint(params: Any, tensors: Any, grads: Any, buffers: Any) -> Any:
        full = list(leaves)
        for slot, tensor in zip(slots, tensors, strict=True):
            full[slot] = tensor
        args, kwargs = pytree.tree_unflatten(full, spec)
        out = torch.func.functional_call(call.module, {**params, **buffers}, args, kwargs)
        return _with_gradients(out, params, tensors, grads)

    return _make_joint(joint, call.module, dict(params), tensors, differentiable, grads, dict(buffers))


def trace_outer(
    model: nn.Module,
    loss: Callable[[Mapping[str, torch.Tensor], Any], torch.Tensor],
    observed: Observed,
    blocks: Mapping[str, nn.Module],
    structure: Mapping[str, Hashable],
    params: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    inputs: Any,
) -> JointGraph:
    """Joint graph of ``loss(state, inputs)`` in which every block call is one ``meshwright::block`` node, whose third
    argument is the block's index in ``blocks`` and whose second is the index of its `BlockCall`."""
    order = {fqn: i for i, fqn in enumerate(blocks)}

    def make(fqn: str, block: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = observed.keys[(structure[fqn], call_key(args, kwargs))]
            outs = iter(_OpaqueBlock.apply(call, order[fqn], *_tensors((args, kwargs))))
            return pytree.tree_map_only(TensorLike, lambda _: next(outs), observed.calls[call].output)

        return forward

    def joint(params: Any, tensors: Any, grads: Any, buffers: Any) -> Any:
        out = loss({**params, **buffers}, pytree.tree_unflatten(tensors, spec))
        return _with_gradients(out, params, (), grads)

    tensors, spec = pytree.tree_flatten(inputs)
    token = _active_calls.set(observed.calls)
    try:
        with replaced_forwards(blocks, make):
            return _make_joint(joint, model, dict(params), tensors, [False] * len(tensors), [None], dict(buffers))
    finally:
        _active_calls.reset(token)


def _with_gradients(out: Any, params: Mapping[str, torch.Tensor], tensors: Any, grads: Any) -> Any:
    outs = [t for t in _tensors(out) if t.requires_grad]
    wanted = [t for t in (*params.values(), *tensors) if t.requires_grad]
    if not outs or not wanted:
        return tuple(outs), tuple(None for _ in wanted)
    setup_stacktrace_preservation_hooks([t.grad_fn for t in outs if t.grad_fn is not None])
    return tuple(outs), torch.autograd.grad(outs, wanted, grads, allow_unused=True)


def _make_joint(
    joint: Any,
    module: nn.Module,
    params: dict[str, torch.Tensor],
    tensors: list[torch.Tensor],
    differentiable: list[bool],
    grads: list[Any],
    buffers: dict[str, torch.Tensor],
) -> JointGraph:
    joint._orig_mod = module  # make_fx reads the module tree from here; without it nodes carry no module
    with torch.fx.traceback.preserve_node_meta():
        traced = make_fx(joint, tracing_mode="real", record_module_stack=True, _allow_non_fake_inputs=True)(
            params, tensors, grads, buffers
        )
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    param_nodes = placeholders[: len(params)]
    inputs = tuple(placeholders[len(params) : len(params) + len(tensors)])
    (out,) = (node for node in traced.graph.nodes if node.op == "output")
    results = pytree.tree_leaves(out.args[0])
    trained = [fqn for fqn, p in params.items() if p.requires_grad]
    gradients = results[len(results) - len(trained) - sum(differentiable) :]
    outputs = results[: len(results) - len(gradients)]
    return JointGraph(
        graph=traced.graph,
        params=dict(zip(params, param_nodes, strict=True)),
        inputs=inputs,
        diff_inputs=tuple(n for n, needs in zip(inputs, differentiable, strict=True) if needs),
        outputs=tuple(outputs),
        param_grads={fqn: grad for fqn, grad in zip(trained, gradients, strict=False) if grad is not None},
    )


# --- the opaque call ---

_active_calls: contextvars.ContextVar[tuple[BlockCall, ...]] = contextvars.ContextVar("meshwright_block_calls")
_library = torch.library.Library("meshwright", "DEF")
_library.define("block(Tensor[] tensors, int call, int block) -> Tensor[]")
_library.define("block_backward(Tensor[] grads, int call, int block) -> Tensor[]")


@torch.library.register_fake("meshwright::block", lib=_library)
def _block(tensors: list[torch.Tensor], call: int, block: int) -> list[torch.Tensor]:
    return [like.empty(requires_grad=False) for like in _active_calls.get()[call].output_likes]


@torch.library.register_fake("meshwright::block_backward", lib=_library)
def _block_backward(grads: list[torch.Tensor], call: int, block: int) -> list[torch.Tensor]:
    likes = _active_calls.get()[call].input_likes
    return [like.empty(requires_grad=False) for like in likes if like.requires_grad]


class _OpaqueBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: int, block: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call, ctx.block = call, block
        outs = torch.ops.meshwright.block(list(tensors), call, block)
        likes = _active_calls.get()[call].output_likes
        ctx.mark_non_differentiable(*(o for o, like in zip(outs, likes, strict=True) if not like.requires_grad))
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        call = _active_calls.get()[ctx.call]
        likes = call.output_likes
        given = [g for g, like in zip(grads, likes, strict=True) if like.requires_grad]
        results = iter(torch.ops.meshwright.block_backward(given, ctx.call, ctx.block))
        return None, None, *(next(results) if like.requires_grad else None for like in call.input_likes)
