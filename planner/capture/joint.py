"""Joint forward + backward ATen graphs by `make_fx` on fake tensors, with the repeated blocks as opaque calls.

Three passes, each over fake tensors only:

1. `planner.capture.calls.observe`: run the model once eagerly; every *distinct* block call is run, an equal one is
   answered with empty tensors of the right shapes. So cost does not grow with depth.
2. `trace_block`: one joint graph per distinct block call.
3. `trace_outer`: one joint graph of the whole model in which each block call is a single ``meshwright::block`` node.

``make_fx`` is used rather than AOT export because it keeps the module of every node, forward and backward, when given
``record_module_stack`` and ``preserve_node_meta`` (autograd's sequence numbers tie a backward node to its forward one).
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._functorch._aot_autograd.logging_utils import setup_stacktrace_preservation_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from planner.capture.blocks import call_key
from planner.capture.calls import BlockCall, Observed, TensorLike, unique
from planner.capture.unchanged import replaced_forwards, unchanged
from planner.errors import TraceError


@dataclass(frozen=True)
class JointGraph:
    """A joint graph and what its placeholders and results stand for."""

    graph: fx.Graph
    params: Mapping[str, fx.Node]
    inputs: tuple[fx.Node, ...]
    """Tensor inputs, in pytree order."""
    diff_inputs: tuple[fx.Node, ...]
    """Those of ``inputs`` that receive a gradient."""
    results: tuple[fx.Node, ...]
    """All tensor results, in pytree order."""
    outputs: tuple[fx.Node, ...]
    """Those of ``results`` that require a gradient."""
    param_grads: Mapping[str, fx.Node]
    """Parameter -> its gradient, for those that have one."""
    trained: frozenset[fx.Node]
    """Those of ``params`` that require a gradient."""
    buffers: Mapping[str, fx.Node]
    constants: Mapping[fx.Node, torch.Tensor]
    """Nodes that stand for tensors which the model made outside of its forward pass, or from Python numbers."""


def trace_block(call: BlockCall, params: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> JointGraph:
    """Joint graph of one block call: outputs, and the gradients of parameters and inputs for given output gradients."""
    likes = call.input_likes
    tensors = [like.empty(requires_grad=needs) for like, needs in zip(likes, call.differentiable, strict=True)]
    grads = [like.empty(requires_grad=False) for like in call.output_likes if like.requires_grad]

    def joint(params: Any, tensors: Any, grads: Any, buffers: Any) -> Any:
        given = {id(like): _Handed.apply(t) for like, t in zip(likes, tensors, strict=True)}
        args, kwargs = pytree.tree_map_only(TensorLike, lambda like: given[id(like)], call.args)
        with call.modes():
            out = torch.func.functional_call(call.module, {**params, **buffers}, args, kwargs)
        return _with_gradients(out, params, tensors, grads)

    with unchanged(call.module):
        made = [like.requires_grad for like in call.output_likes]
        return _make_joint(joint, call.module, dict(params), tensors, call.differentiable, grads, dict(buffers), made)


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
            call = observed.keys.get((structure[fqn], call_key(args, kwargs)))
            if call is None:
                raise TraceError(
                    f"{type(model).__name__} calls {fqn} with other shapes or arguments each time it runs; a plan "
                    "needs one program. Give it the same arguments, and keep random choices out of forward."
                )
            # A block may be the first to need gradients: a parameter of its own, not read here, tells autograd so.
            trained = [p for p in block.parameters() if p.requires_grad][:1]
            outs = _OpaqueBlock.apply(call, order[fqn], len(trained), *trained, *unique((args, kwargs), torch.Tensor))
            given = dict(zip(map(id, observed.calls[call].output_likes), outs, strict=True))
            return pytree.tree_map_only(TensorLike, lambda like: given[id(like)], observed.calls[call].output)

        return forward

    def joint(params: Any, tensors: Any, grads: Any, buffers: Any) -> Any:
        out = loss({**params, **buffers}, pytree.tree_unflatten(tensors, spec))
        return _with_gradients(out, params, (), grads)

    tensors, spec = pytree.tree_flatten(inputs)
    none = [False] * len(tensors)
    grads = [observed.loss.empty(requires_grad=False)]
    token = _active_calls.set(observed.calls)
    try:
        with replaced_forwards(model, blocks, make):
            return _make_joint(joint, model, dict(params), tensors, none, grads, dict(buffers), [True])
    finally:
        _active_calls.reset(token)


def _with_gradients(out: Any, params: Mapping[str, torch.Tensor], tensors: Any, grads: Any) -> Any:
    every = unique(out, torch.Tensor)
    outs = [t for t in every if t.requires_grad]
    wanted = [t for t in (*params.values(), *tensors) if t.requires_grad]
    if not outs or not wanted:
        return tuple(every), tuple(None for _ in wanted)
    setup_stacktrace_preservation_hooks([t.grad_fn for t in outs if t.grad_fn is not None])
    return tuple(every), torch.autograd.grad(outs, wanted, grads, allow_unused=True)


def _make_joint(
    joint: Any,
    module: nn.Module,
    params: dict[str, torch.Tensor],
    tensors: list[torch.Tensor],
    differentiable: list[bool],
    grads: list[Any],
    buffers: dict[str, torch.Tensor],
    made: list[bool],
) -> JointGraph:
    """``made`` says of every tensor result whether it requires a gradient."""
    joint._orig_mod = module  # make_fx reads the module tree from here; without it nodes carry no module
    with torch.fx.traceback.preserve_node_meta():
        traced = make_fx(joint, tracing_mode="real", record_module_stack=True, _allow_non_fake_inputs=True)(
            params, tensors, grads, buffers
        )
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    param_nodes = placeholders[: len(params)]
    inputs = tuple(placeholders[len(params) : len(params) + len(tensors)])
    (out,) = (node for node in traced.graph.nodes if node.op == "output")
    leaves = pytree.tree_leaves(out.args[0])
    results, gradients = leaves[: len(made)], leaves[len(made) :]
    trained = [fqn for fqn, p in params.items() if p.requires_grad]
    constants = {n: getattr(traced, n.target) for n in traced.graph.nodes if n.op == "get_attr"}
    return JointGraph(
        graph=traced.graph,
        params=dict(zip(params, param_nodes, strict=True)),
        inputs=inputs,
        diff_inputs=tuple(n for n, needs in zip(inputs, differentiable, strict=True) if needs),
        results=tuple(results),
        outputs=tuple(node for node, trains in zip(results, made, strict=True) if trains),
        param_grads={fqn: grad for fqn, grad in zip(trained, gradients, strict=False) if grad is not None},
        trained=frozenset(node for p, node in zip(params.values(), param_nodes, strict=True) if p.requires_grad),
        buffers=dict(zip(buffers, placeholders[len(placeholders) - len(buffers) :], strict=True)),
        constants=constants,
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


class _Handed(torch.autograd.Function):
    """A tensor that the caller computed: unlike a leaf, it may be changed in place."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _OpaqueBlock(torch.autograd.Function):
    """``num_trained`` of the tensors are parameters: not arguments of the call, and without a gradient of their own."""

    @staticmethod
    def forward(ctx: Any, call: int, block: int, num_trained: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call, ctx.block, ctx.num_trained = call, block, num_trained
        outs = torch.ops.meshwright.block(list(tensors[num_trained:]), call, block)
        likes = _active_calls.get()[call].output_likes
        ctx.mark_non_differentiable(*(o for o, like in zip(outs, likes, strict=True) if not like.requires_grad))
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        call = _active_calls.get()[ctx.call]
        likes = call.output_likes
        given = [g for g, like in zip(grads, likes, strict=True) if like.requires_grad]
        results = iter(torch.ops.meshwright.block_backward(given, ctx.call, ctx.block))
        inputs = (next(results) if like.requires_grad else None for like in call.input_likes)
        return *(None for _ in range(3 + ctx.num_trained)), *inputs
