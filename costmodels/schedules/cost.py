"""What the stages of a pipeline cost: seconds and bytes of one microbatch."""

from __future__ import annotations

from dataclasses import dataclass

from costmodels.schedules.graph import Transfer


@dataclass(frozen=True)
class StageCost:
    """One virtual stage, one microbatch. Seconds of a whole backward are both gradients' together."""

    forward_s: float
    input_grad_s: float
    weight_grad_s: float
    send_forward_s: float = 0.0
    """Output to the next stage, where that is on another rank."""
    send_backward_s: float = 0.0
    """Gradient of the input to the previous stage, where that is on another rank."""
    saved_bytes: int = 0
    """Activations from the begin of the forward to the end of the backward."""
    kept_for_weight_bytes: int = 0
    """Part of `saved_bytes` that outlives the input's gradient and waits for the weights'."""
    forward_transient_bytes: int = 0
    """Besides, while a forward runs."""
    backward_transient_bytes: int = 0
    """Besides, while a backward or either of its halves runs."""

    def seconds(self, kind: str) -> float:
        """Seconds of an action of the kind."""
        return {
            "F": self.forward_s,
            "I": self.input_grad_s,
            "W": self.weight_grad_s,
            "B": self.input_grad_s + self.weight_grad_s,
        }[kind]

    def freed_bytes(self, kind: str) -> int:
        """Saved bytes that an action of the kind frees at its end."""
        return {
            "F": 0,
            "I": self.saved_bytes - self.kept_for_weight_bytes,
            "W": self.kept_for_weight_bytes,
            "B": self.saved_bytes,
        }[kind]


@dataclass(frozen=True)
class Cost:
    """All virtual stages of a schedule, in order."""

    stages: tuple[StageCost, ...]
    static_bytes: tuple[int, ...] = ()
    """Per rank what is there all the time: parameters, gradients, optimizer states; empty for none."""
    sends_block: bool = False
    """Whether a transfer occupies sender and receiver; otherwise it only delays who waits for it."""
    pair_factor: float = 1.0
    """Seconds of an overlapped pair relative to its forward and backward one after the other."""

    def runs_s(self, runs: tuple[tuple[str, int], ...]) -> float:
        """Seconds of one action or of a pair."""
        seconds = sum(self.stages[stage].seconds(kind) for kind, stage in runs)
        return seconds * self.pair_factor if len(runs) > 1 else seconds

    def transfers_s(self, transfers: tuple[Transfer, ...]) -> float:
        """Seconds of transfers one after the other."""
        stages = self.stages
        return sum(stages[s].send_forward_s if kind == "F" else stages[s].send_backward_s for kind, s in transfers)

    def runs_bytes(self, runs: tuple[tuple[str, int], ...]) -> tuple[int, int, int]:
        """Bytes that an action or a pair takes at its begin, needs besides while it runs, and frees at its end."""
        taken = transient = freed = 0
        for kind, stage in runs:
            of = self.stages[stage]
            transient += of.forward_transient_bytes if kind == "F" else of.backward_transient_bytes
            taken += of.saved_bytes if kind == "F" else 0
            freed += of.freed_bytes(kind)
        return taken, transient, freed
