"""The rounds of `verify-resume`: a run is killed and resumed until it completes, and compared after every kill."""

import random
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.config.overrides import quoted
from lmtrain.errors import BAD_CONFIG, ConfigError
from lmtrain.verify.bit_comparison import BitDifference, UndisturbedRun
from lmtrain.verify.kill import AttemptServer, EndedAttempt, KillMoment, choose_kill_moment

MAX_KILLS = 15  # a round; its last attempt is left alone
PATIENCE = 4  # kills in a row without a new checkpoint; the next one waits for one
KILLS_A_SERVER = 10
BEYOND = 1.1  # of the expected duration: one in ten random moments comes when all is over
OUTPUT_LINES = 30  # shown of an attempt that failed by itself
KEEP_ALL = 1_000_000_000


@dataclass(frozen=True)
class Kill:
    """One kill: what the run was doing and for how long, and the newest checkpoint that it left (0: none)."""

    round: int
    phase: str
    aimed_at: str | None
    seconds: float
    checkpoint: int
    resumed: bool  # the next attempt resumes; else there was no run yet, and it starts again


class FailedAttemptError(RuntimeError):
    """An attempt failed by itself; `output` is the end of what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


class BitsDifferError(RuntimeError):
    """A killed run differs from the undisturbed one; the earliest difference is first.

    `unrepeatable` is the first difference between two undisturbed runs, None if there is none.
    """

    def __init__(
        self, differences: Sequence[BitDifference], undisturbed: Path, killed: Path, unrepeatable: BitDifference | None
    ) -> None:
        super().__init__(str(differences[0]))
        self.differences, self.undisturbed, self.killed = differences, undisturbed, killed
        self.unrepeatable = unrepeatable


class Verification:
    """Runs of one config in `folder`, and their results; must be closed."""

    def __init__(
        self, folder: Path, overrides: Sequence[str], chance: random.Random, keep_checkpoints: int, *, keep: bool
    ) -> None:
        self.folder, self.overrides, self.chance = folder, overrides, chance
        self.keep_checkpoints, self.keep = keep_checkpoints, keep
        self.kills: list[Kill] = []
        self.rounds = 0
        self.undisturbed: UndisturbedRun | None = None
        self._server: AttemptServer | None = None
        self._killed_here = 0

    def run_undisturbed(self) -> None:
        """Run the run that the others are compared with.

        Raises:
            ConfigError: a mistake that shows only when the parts are built.
            FailedAttemptError: it does not complete.
        """
        ended = self._run_undisturbed("undisturbed")
        self.close()  # so that the others begin with another one
        self.undisturbed = UndisturbedRun(self.folder / "undisturbed")
        self.seconds = ended.seconds
        self.steps = max(self.undisturbed.steps)
        start_up_s = ended.start_up_s or 0.0
        self._start_up_s = {False: start_up_s, True: start_up_s}  # of a fresh run, of one that resumes
        self._training_s = ended.seconds - start_up_s
        self.phases = set(ended.seen)
        if len(self.undisturbed.steps) > self.keep_checkpoints + 1:  # that run kept all, these will not
            self.phases.add("pruning")

    def run_round(self, kills: int, on_kill: Callable[[int], object]) -> Counter[str]:
        """Run one run, killed at most so many times until it completes; return the phases it was killed in.

        `on_kill` is told the number of kills so far.

        Raises:
            BitsDifferError: after a kill or at the end.
            FailedAttemptError: an attempt fails by itself.
        """
        self.rounds += 1
        run = self.folder / f"killed-{self.rounds}"
        output = self.folder / f"killed-{self.rounds}.output"
        hits: Counter[str] = Counter()
        barren = 0
        while True:
            before, resumes = _newest(run), is_run(run)
            arguments = [f"resume={run}"] if resumes else self._fresh(run)
            moment = None
            if hits.total() < min(kills, MAX_KILLS):
                total = Counter(kill.phase for kill in self.kills)
                expected_s = BEYOND * self._expected_s(resumes, before)
                moment = choose_kill_moment(self.chance, expected_s, self.phases, total)
            ended = self._run(arguments, output, moment, run if barren >= PATIENCE else None)
            self._learn(ended, resumes, before)
            if not ended.killed:
                break
            newest = _newest(run)
            barren = 0 if newest > before else barren + 1
            hits[ended.phase] += 1
            aimed_at = moment.phase if moment else None
            self.kills.append(Kill(self.rounds, ended.phase, aimed_at, ended.seconds, newest, is_run(run)))
            on_kill(len(self.kills))
            self._compare(run, completed=False)
        raise_if_failed(ended, arguments, output)
        self._compare(run, completed=True)
        if not self.keep:
            shutil.rmtree(run)
        return hits

    def _run(
        self, arguments: Sequence[str], output: Path, moment: KillMoment | None = None, progress_of: Path | None = None
    ) -> EndedAttempt:
        """Run one attempt; with `progress_of`, its moment comes after a new checkpoint there."""
        # What Python draws when it starts, such as its hashes, must not matter: all forks of one process share it.
        if self._server and self._killed_here >= KILLS_A_SERVER:
            self.close()
        if self._server is None:
            self._server, self._killed_here = AttemptServer(), 0
        before = _newest(progress_of) if progress_of else -1
        ended = self._server.run(
            arguments, output, moment, lambda: progress_of is None or _newest(progress_of) > before
        )
        self._killed_here += ended.killed
        return ended

    def close(self) -> None:
        """End all processes."""
        server, self._server = self._server, None
        if server:
            server.close()

    def _expected_s(self, resumes: bool, step: int) -> float:
        """Return the duration of an attempt that goes on from a step."""
        return self._start_up_s[resumes] + self._training_s * (1 - step / self.steps)

    def _learn(self, ended: EndedAttempt, resumes: bool, step: int) -> None:
        """Update the expected durations: later attempts may be quicker, if they find something compiled or cached."""
        if ended.start_up_s is not None:
            self._start_up_s[resumes] = ended.start_up_s
            if not ended.killed and step <= self.steps / 2:
                self._training_s = (ended.seconds - ended.start_up_s) / (1 - step / self.steps)

    def _run_undisturbed(self, name: str) -> EndedAttempt:
        arguments = [*self._fresh(self.folder / name), f"trainer.keep_checkpoints={KEEP_ALL}"]
        output = self.folder / f"{name}.output"
        self.close()
        ended = self._run(arguments, output)
        raise_if_failed(ended, arguments, output)
        return ended

    def _fresh(self, run: Path) -> list[str]:
        return [*self.overrides, f"hydra.run.dir={quoted(str(run))}"]

    def _compare(self, run: Path, *, completed: bool) -> None:
        assert self.undisturbed is not None
        if not (found := self.undisturbed.differences(run, completed=completed)):
            return
        # Is it the resume, or does this config never give the same bits twice?
        self._run_undisturbed("undisturbed-again")
        again = self.undisturbed.differences(self.folder / "undisturbed-again", completed=True)
        raise BitsDifferError(found, self.undisturbed.path, run, again[0] if again else None)


def is_run(run: Path) -> bool:
    """Return whether `resume=` finds a run there; a process that was killed earlier had not begun one."""
    return (run / "config.yaml").is_file() and (run / ".hydra" / "config.yaml").is_file()


def raise_if_failed(ended: EndedAttempt, arguments: Sequence[str], output: Path) -> None:
    """Raise ConfigError or FailedAttemptError if an attempt ended by itself without success."""
    if ended.code == 0:
        return
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    mistakes = [line.removeprefix("config error: ") for line in lines if line.startswith("config error: ")]
    if ended.code == BAD_CONFIG.exit_code and mistakes:
        raise ConfigError(mistakes[-1])
    how = f"exit code {ended.code}" if ended.code > 0 else f"{signal.Signals(-ended.code).name}, not from here"
    command = shlex.join(["python", "-m", "lmtrain", *arguments])
    raise FailedAttemptError(f"a run failed by itself ({how}): {command}", "\n".join(lines[-OUTPUT_LINES:]))


def _newest(run: Path) -> int:
    return max(checkpoint_steps(run), default=0)
