"""Small programs that talk as plans do, written by hand: FSDP2 over DTensor parameters with functional collectives over
``tp``, in one piece or as pipeline stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.tensor import DTensor, Shard

from planner.runtime.dry_run.observe import Observer
from planner.runtime.dry_run.world import fake_tensors, fake_world

VOCAB, DIM, HIDDEN, LAYERS, TOKENS = 1000, 64, 256, 4, 32


def all_reduce(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    reduced = torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", mesh.get_group().group_name)
    return torch.ops._c10d_functional.wait_tensor(reduced)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.mesh), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, mesh: DeviceMesh) -> Tensor:
        return all_reduce(tensor, mesh)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Mlp(nn.Module):
    """Column- then row-parallel; an all-reduce forward and one backward."""

    def __init__(self, tp: DeviceMesh) -> None:
        super().__init__()
        self.tp, width = tp, HIDDEN // tp.size()
        self.norm = nn.Parameter(torch.ones(DIM))
        self.up = nn.Parameter(DTensor.from_local(torch.ones(width, DIM), tp, [Shard(0)], run_check=False))
        self.down = nn.Parameter(DTensor.from_local(torch.ones(DIM, width), tp, [Shard(1)], run_check=False))

    def forward(self, x: Tensor) -> Tensor:
        y = _Enter.apply(F.rms_norm(x, (DIM,), self.norm), self.tp)
        y = F.linear(F.silu(F.linear(y, self.up.to_local())), self.down.to_local())
        return x + _Leave.apply(y, self.tp)


class Stage(nn.Module):
    """Some of the layers; the first stage has the embedding, the last the head."""

    def __init__(self, layers: range, tp: DeviceMesh, *, first: bool, last: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM) if first else None
        self.layers = nn.ModuleDict({str(i): Mlp(tp) for i in layers})
        self.head = nn.Linear(DIM, VOCAB, bias=False) if last else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.embedding is None else self.embedding(x)
        for layer in self.layers.values():
            x = layer(x)
        return x if self.head is None else self.head(x)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


FULL = MixedPrecisionPolicy()


@dataclass(frozen=True)
class Program:
    """A step of one rank; ``sizes`` of pp, dp_shard, tp."""

    sizes: tuple[int, int, int] = (1, 4, 2)
    precision: MixedPrecisionPolicy = FULL
    reshard: bool = True
    microbatches: int = 2
    schedule: str = "Schedule1F1B"
    on_layer: Callable[[nn.Module, DeviceMesh], object] | None = None
    """Called with every rank's first layer."""

    def observe(self, rank: int, *, real: bool = False) -> Observer:
        """Run one step of ``rank`` on fake (or real) tensors in a fake world."""
        pp, dp_shard, tp = self.sizes
        with fake_world(rank, pp * dp_shard * tp):
            mesh = init_device_mesh("cpu", self.sizes, mesh_dim_names=("pp", "dp_shard", "tp"))
            meshes = {name: mesh[name] for name in ("pp", "dp_shard", "tp")}
            axes = {m.get_group().group_name: name for name, m in meshes.items()}
            with nullcontext() if real else fake_tensors():
                return self._step(meshes, axes)

    def _step(self, meshes: dict[str, DeviceMesh], axes: dict[str, str]) -> Observer:
        pp, own = self.sizes[0], meshes["pp"].get_local_rank()
        v_shaped = self.schedule in ("ScheduleZBVZeroBubble", "ScheduleDualPipeV")
        one_each = self.schedule == "Schedule1F1B"
        num_stages = pp if one_each else 2 * pp
        indices = [own] if one_each else [own, num_stages - 1 - own] if v_shaped else [own, own + pp]
        stages = [self._stage(i, num_stages, meshes) for i in indices]
        if self.on_layer is not None:
            self.on_layer(next(iter(stages[0].layers.values())), meshes["tp"])
        parameters = [p for stage in stages for p in stage.parameters()]
        optimizer = torch.optim.AdamW(parameters, foreach=False)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

        names = {m: name for stage in stages for name, m in stage.named_modules() if name}
        observer = Observer(names, axes, stages[0])
        observer.memory.hold(parameters, "parameters")
        observer.memory.hold([v for state in optimizer.state.values() for v in state.values()], "optimizer")
        tokens = torch.zeros(self.microbatches, TOKENS, dtype=torch.long)
        with observer.watching():
            if pp == 1:
                for sample in tokens.split(1):
                    loss_of(stages[0](sample), sample).backward()
            else:
                schedule = self._schedule(stages, indices, num_stages, meshes["pp"])
                arguments = (tokens,) if 0 in indices else ()
                schedule.step(*arguments, **({"target": tokens} if num_stages - 1 in indices else {}))
            observer.memory.hold([p.grad for p in parameters if p.grad is not None], "gradients")
            optimizer.step()
            optimizer.zero_grad()
        return observer

    def _stage(self, index: int, num_stages: int, meshes: dict[str, DeviceMesh]) -> Stage:
        each = LAYERS // num_stages
        layers = range(index * each, (index + 1) * each)
        stage = Stage(layers, meshes["tp"], first=index == 0, last=index == num_stages - 1)
        for module in (*stage.layers.values(), stage):
            fully_shard(module, mesh=meshes["dp_shard"], reshard_after_forward=self.reshard, mp_policy=self.precision)
        return stage

    def _schedule(self, stages: list[Stage], indices: list[int], num_stages: int, mesh: DeviceMesh) -> object:
        made = []
        for stage, index in zip(stages, indices, strict=True):
            first, last = index == 0, index == num_stages - 1
            hidden = torch.empty(1, TOKENS, DIM, requires_grad=True)
            tokens = torch.empty(1, TOKENS, dtype=torch.long)
            logits = torch.empty(1, TOKENS, VOCAB, requires_grad=True)
            out = logits if last else hidden
            made.append(
                PipelineStage(
                    stage, index, num_stages, torch.device("cpu"), group=mesh.get_group(),
                    input_args=(tokens if first else hidden,), output_args=(out,),
                    input_grads=(None if first else torch.empty_like(hidden),), output_grads=(torch.empty_like(out),),
                )
            )  # fmt: skip
        kind = getattr(schedules, self.schedule)
        return kind(made[0] if len(made) == 1 else made, n_microbatches=self.microbatches, loss_fn=loss_of)
