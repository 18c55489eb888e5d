"""Kills the attempts of `verify-resume` at chosen moments, and reports how they ended."""

import json
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtrain.verify.phases import PhaseFile

POLL_S = 0.0002  # interval of reading the phase
MAX_DELAY_S = 0.005  # longest wait after a phase begins, so that its later parts are hit too


@dataclass(frozen=True)
class KillMoment:
    """A moment to kill: after `after_s` seconds or, with a `phase`, `delay_s` seconds after the phase is next seen."""

    after_s: float
    phase: str | None = None
    delay_s: float = 0.0


@dataclass(frozen=True)
class EndedAttempt:
    """The end of an attempt.

    Attributes:
        code: The exit code; negative for a signal.
        killed: True if this process killed it.
        phase: The phase in which it ended.
        seconds: The duration.
        start_up_s: The time until training began; None if it did not begin.
        seen: All phases that were seen.
    """

    code: int
    killed: bool
    phase: str
    seconds: float
    start_up_s: float | None
    seen: frozenset[str]


def choose_kill_moment(
    chance: random.Random, duration_s: float, phases: Collection[str], hits: Counter[str]
) -> KillMoment:
    """Return a random moment within the duration; half of the moments are in one of the phases with the fewest hits."""
    after_s = chance.uniform(0, duration_s)
    if not phases or chance.random() < 0.5:
        return KillMoment(after_s)
    fewest = min(hits[phase] for phase in phases)
    phase = chance.choice(sorted(phase for phase in phases if hits[phase] == fewest))
    # Usually the first time that the phase is seen, because it may not come again later.
    return KillMoment(after_s if chance.random() < 0.25 else 0.0, phase, MAX_DELAY_S * chance.random() ** 3)


class AttemptServer:
    """A process that has imported torch and runs attempts at `python -m lmtrain …` in forks of itself.

    Closing it stops an attempt that is running.
    """

    def __init__(self) -> None:
        # The server has its own session, so that Ctrl-C reaches only this process, which then stops the attempts.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain.verify.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._ready = False

    def close(self) -> None:
        self.process.communicate()  # closes its input

    def run(
        self,
        arguments: Sequence[str],
        output: Path,
        moment: KillMoment | None = None,
        armed: Callable[[], bool] = lambda: True,
    ) -> EndedAttempt:
        """Run one attempt to its end or to `moment`, whose seconds count from the first time that `armed` is True.

        Raises:
            RuntimeError: the server has ended.
        """
        if not self._ready:
            self._answer(None)  # otherwise the server's imports would count as the attempt's time
            self._ready = True
        phases = PhaseFile(output.with_suffix(".phase"))
        request = {"arguments": list(arguments), "output": str(output), "phase": str(phases.path)}
        started = time.monotonic()
        self._send(json.dumps(request))
        armed_at: float | None = None
        sent = False
        timeout_s: float | None = None if moment is None else 0.0
        while (answer := self._answer(timeout_s)) is None:
            assert moment is not None
            now = time.monotonic()
            if armed_at is None and armed():
                armed_at = now
            timeout_s = POLL_S
            if armed_at is None:
                continue
            left_s = armed_at + moment.after_s - now
            if left_s > 0:
                timeout_s = left_s
            elif moment.phase is None or phases.now() == moment.phase:
                time.sleep(moment.delay_s)
                self._send("kill")
                sent, timeout_s = True, None
        ended, began, code = time.monotonic(), phases.began(), int(answer)
        return EndedAttempt(
            code,
            killed=sent and code == -signal.SIGKILL,
            phase=phases.now(),
            seconds=ended - started,
            start_up_s=began - started if began else None,
            seen=phases.seen(),
        )

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def _answer(self, timeout_s: float | None) -> str | None:
        """Return the next line, or None at the timeout."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return None
        line = self.process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError(f"the process that starts the runs failed with exit code {self.process.wait()}")
        return line
