"""Who hangs, who died, who failed: a thread in every rank that does not depend on what the communication library
notices.

Each rank's thread writes a `Pulse` into the store that the launcher or rank 0 holds: a beat that counts up, and how far
the measuring has come. Rank 0's thread reads all of them and reaches a verdict

- when a rank failed or was told to stop: a few beats later, so that a rank that died (and made the others fail) is
  seen by its beat standing still;
- when the beat of a rank, or the rank that is furthest behind, has not moved for the time limit.

The verdict goes back through the store; every rank prints it, the lowest rank that is not missing saves what there
is, and all processes end, even those whose main thread never returns from the library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from time import monotonic, sleep
from types import FrameType
from typing import NoReturn

from hardware_profiles.measuring.stores import Store

EXIT_RANK_LOST = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SETTLE_BEATS = 4
_SETTLE_S = 3.0
"""A processor that is shared may keep a thread from beating for as long."""
_SAVE_WAIT_S = 25.0
"""How long the others wait for the one that saves; launchers kill what is left after 30 s."""


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """What a rank says of itself."""

    rank: int
    host: str = "?"
    beat: int = -1
    """Counts up; -1: the rank has not joined."""
    measurement: int = -1
    calls: int = 0
    """Collectives begun in this measurement."""
    what: str = "starting"
    state: str = "running"
    """``running``, ``failed`` or ``stopped``."""
    turn: int = 0
    """Order in which ranks failed, from 1."""
    error: str = ""
    exit_code: int = EXIT_RANK_LOST

    @property
    def progress(self) -> tuple[int, int]:
        return self.measurement, self.calls


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why the run ends early."""

    text: str
    missing: tuple[int, ...] = ()
    exit_code: int = EXIT_RANK_LOST
    save: bool = True
    """What was measured is worth a profile: false after an error of the user's, whose run has measured nothing."""


class Judge:
    """Pulses of all ranks over time -> verdict; no threads, no store."""

    def __init__(
        self, world_size: int, time_limit_s: float, interval_s: float, now: float, silence_limit_s: float | None = None
    ) -> None:
        self.time_limit_s = time_limit_s
        self.silence_limit_s = time_limit_s if silence_limit_s is None else silence_limit_s
        self.settle_s = min(max(_SETTLE_S, _SETTLE_BEATS * interval_s), time_limit_s / 2)
        self._pulses = [Pulse(rank=rank) for rank in range(world_size)]
        self._beat_at = [now] * world_size
        self._behind = self._pulses[0].progress
        self._behind_since = now
        self._ended_at: float | None = None

    def see(self, pulses: list[Pulse], now: float) -> Verdict | None:
        """The verdict once it can be told, at the time ``now`` in seconds."""
        for i, pulse in enumerate(pulses):
            if pulse.beat != self._pulses[i].beat:
                self._beat_at[i] = now
        self._pulses = pulses
        behind = min(pulse.progress for pulse in pulses)
        if behind != self._behind:
            self._behind, self._behind_since = behind, now
        ended = [pulse for pulse in pulses if pulse.state != "running"]
        if ended:
            self._ended_at = now if self._ended_at is None else self._ended_at
            since = self._ended_at
            if now - since < self.settle_s:
                return None
            dead = [pulse for pulse in pulses if self._beat_at[pulse.rank] <= since]
            return self._dead(dead) if dead else _ended(ended)
        dead = [pulse for pulse in pulses if now - self._beat_at[pulse.rank] > self.silence_limit_s]
        if dead:
            return self._dead(dead)
        if now - self._behind_since > self.time_limit_s:
            return self._hanging([pulse for pulse in pulses if pulse.progress == behind])
        return None

    def _dead(self, dead: list[Pulse]) -> Verdict:
        # The dead were last heard of a beat before; where the others are now is where they died.
        where = max(self._pulses, key=lambda pulse: pulse.progress).what
        lines = [
            f"rank {pulse.rank} never joined"
            if pulse.beat < 0
            else f"rank {pulse.rank} on {pulse.host} died, or its host no longer answers, in {where}"
            for pulse in dead
        ]
        return Verdict(text="\n".join(lines), missing=tuple(pulse.rank for pulse in dead))

    def _hanging(self, behind: list[Pulse]) -> Verdict:
        if len(behind) == len(self._pulses):
            return Verdict(
                text=f"all ranks wait inside of the same call for {self.time_limit_s:g} s, in {behind[0].what}: "
                "the library or a link hangs, no rank by itself"
            )
        lines = [
            f"rank {pulse.rank} on {pulse.host} hangs in {pulse.what}: no progress for {self.time_limit_s:g} s, "
            "others wait for it"
            for pulse in behind
        ]
        return Verdict(text="\n".join(lines), missing=tuple(pulse.rank for pulse in behind))


def _ended(ended: list[Pulse]) -> Verdict:
    """Ranks that failed or were stopped, none of them dead: the first one is the cause."""
    first = min(ended, key=lambda pulse: pulse.turn)
    if first.state == "stopped":
        number = signal.Signals[first.error]
        return Verdict(text=f"stopped by {first.error} in {first.what}", exit_code=128 + number)
    if first.exit_code != EXIT_RANK_LOST:
        return Verdict(text=first.error, exit_code=first.exit_code, save=False)
    return Verdict(text=f"rank {first.rank} on {first.host} failed in {first.what}: {first.error}")


class Watchdog:
    """This rank's thread, and the main thread's way to tell it how far it is."""

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        time_limit_s: float,
        save: Callable[[Verdict], None],
        silence_limit_s: float | None = None,
        work: str = "measuring",
    ) -> None:
        """
        Args:
            time_limit_s: without progress.
            silence_limit_s: without a beat; default the same.
            work: what is watched, for messages.
        """
        self.rank, self.world_size, self.time_limit_s = rank, world_size, time_limit_s
        self.silence_limit_s = time_limit_s if silence_limit_s is None else silence_limit_s
        self._work = work
        self.interval_s = min(max(0.25, world_size / 500), time_limit_s / 8)
        self._store, self._save = store, save
        self.calls = 0
        """Calls begun in this measurement: the main thread counts up before each that may wait for other ranks. A bare
        number, because it is counted inside of what is timed."""
        self._pulse = Pulse(rank=rank, host=socket.gethostname())
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._old: dict[signal.Signals, object] = {}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to beat; SIGINT and SIGTERM now end the run with what is measured saved. Main thread only."""
        # The byte that Python's C handler writes wakes the thread even while the main thread is inside of the library.
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._old[number] = signal.signal(number, _ignore)
        self._thread.start()

    def close(self) -> None:
        """No longer watch: everything is measured."""
        self._closed.set()
        self._thread.join()
        signal.set_wakeup_fd(-1)
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._read.close()
        self._write.close()

    def begin(self, measurement: int, what: str) -> None:
        """The main thread begins a measurement."""
        self.calls = 0
        self._change(measurement=measurement, what=what)

    def fail(self, error: str, exit_code: int = EXIT_RANK_LOST) -> NoReturn:
        """The main thread failed; does not return, for the watchdog ends the process."""
        self._end("failed", error, exit_code)
        while True:
            sleep(3600)

    def _end(self, state: str, error: str, exit_code: int = EXIT_RANK_LOST) -> None:
        if self._pulse.state == "running":
            self._change(state=state, error=error, exit_code=exit_code, turn=self._store.add("turns", 1))

    def _change(self, **values: object) -> None:
        with self._lock:
            self._pulse = replace(self._pulse, **values)  # type: ignore[arg-type]

    def _watch(self) -> None:
        judge = Judge(self.world_size, self.time_limit_s, self.interval_s, monotonic(), self.silence_limit_s)
        leader_beat, leader_at = "", monotonic()
        try:
            if self.rank == 0:
                for rank in range(self.world_size):
                    self._store.compare_set(_key(rank), "", json.dumps(asdict(Pulse(rank=rank))))
            while not self._closed.is_set():
                self._beat()
                if self.rank == 0:
                    keys = [_key(rank) for rank in range(self.world_size)]
                    pulses = [Pulse(**json.loads(text)) for text in self._store.multi_get(keys)]
                    verdict = judge.see(pulses, monotonic())
                    if verdict is not None:
                        self._store.set("verdict", json.dumps(asdict(verdict)))
                        self._finish(verdict)
                elif self._store.check(["verdict"]):
                    self._finish(Verdict(**json.loads(self._store.get("verdict"))))
                else:
                    beat = self._store.get(_key(0)).decode()
                    leader_beat, leader_at = (beat, monotonic()) if beat != leader_beat else (leader_beat, leader_at)
                    if monotonic() - leader_at > self.silence_limit_s:
                        self._finish(Verdict(text="rank 0 died, or its host no longer answers", missing=(0,)))
                self._wait()
        except (RuntimeError, OSError) as error:
            if not self._closed.is_set():
                self._finish(
                    Verdict(text=f"the store of rank 0 no longer answers: rank 0 died ({_short(error)})", missing=(0,))
                )

    def _beat(self) -> None:
        self._change(beat=self._pulse.beat + 1, calls=self.calls)
        self._store.set(_key(self.rank), json.dumps(asdict(self._pulse)))

    def _wait(self) -> None:
        """Until the next beat; a signal ends the run."""
        readable, _, _ = select.select([self._read], [], [], self.interval_s)
        if readable:
            numbers = [number for number in self._read.recv(64) if number in _SIGNALS]
            if numbers:
                self._end("stopped", signal.Signals(numbers[0]).name)

    def _finish(self, verdict: Verdict) -> None:
        """Say why, save if it is on this rank to do so, and end the process from this thread."""
        leader = next((rank for rank in range(self.world_size) if rank not in verdict.missing), 0)
        # One that hangs still has this thread: it says so too, and rank 0 saves even if it is itself the one.
        if 0 in verdict.missing and self.rank == 0:
            leader = 0
        sys.stderr.write(f"meshwright, rank {self.rank}: {self._work} ended early: {verdict.text}\n")
        sys.stderr.flush()
        try:
            if self.rank == leader:
                try:
                    if verdict.save:
                        self._save(verdict)
                finally:
                    self._store.set("saved", "")
            else:
                self._store.wait(["saved"], timedelta(seconds=_SAVE_WAIT_S))
        except Exception as error:  # noqa: BLE001  This thread ends the process whatever happens, and must say what.
            sys.stderr.write(f"meshwright, rank {self.rank}: {type(error).__name__}: {_short(error)}\n")
        finally:
            # The store may be rank 0's: it stays until the others have read the verdict from it.
            if self.rank == 0:
                sleep(_SETTLE_BEATS * self.interval_s)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(verdict.exit_code)


def _short(error: Exception) -> str:
    """The first line: torch appends the frames of its C++ code."""
    return (str(error).splitlines() or [""])[0]


def _key(rank: int) -> str:
    return f"pulse/{rank}"


def _ignore(number: int, frame: FrameType | None) -> None:
    """A handler must be set for the wake-up byte to be written; the watchdog does the rest."""
