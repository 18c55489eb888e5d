"""Runs the rounds of `verify-resume`: kills and resumes a run until it completes, and compares it after every kill."""

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

MAX_KILLS = 15  # per round; the last attempt is not killed
PATIENCE = 4  # after this many kills in a row without a new checkpoint, the next kill waits for one
KILLS_PER_SERVER = 10
BEYOND = 1.1  # times the expected duration, so that one in ten random moments is after the end
OUTPUT_LINES = 30  # number of lines to show of a failed attempt
CRASHES = ("SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL")  # the signals whose stack faulthandler prints
CRASH_LINE = "Fatal Python error: "  # begins what faulthandler prints
KEEP_ALL = 1_000_000_000


@dataclass(frozen=True)
class Kill:
    """A kill.

    Attributes:
        round: The round, from 1.
        phase: The phase in which the run was killed.
        aimed_at: The phase in which it was to be killed; None for a random moment.
        seconds: The duration of the attempt.
        checkpoint: The step of the newest checkpoint at the kill; 0 without one.
        resumed: True if the next attempt resumes, False if it starts again because there was no run yet.
    """

    round: int
    phase: str
    aimed_at: str | None
    seconds: float
    checkpoint: int
    resumed: bool


class FailedAttemptError(RuntimeError):
    """An attempt failed without being killed; `output` has the last lines that it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


class BitsDifferError(RuntimeError):
    """A killed run differs from the undisturbed one.

    `differences` starts with the earliest one. `unrepeatable` is the first difference between two undisturbed runs;
    None if they are equal.
    """

    def __init__(
        self, differences: Sequence[BitDifference], undisturbed: Path, killed: Path, unrepeatable: BitDifference | None
    ) -> None:
        super().__init__(str(differences[0]))
        self.differences, self.undisturbed, self.killed = differences, undisturbed, killed
        self.unrepeatable = unrepeatable


class Verification:
    """Runs one config in `folder`, undisturbed and with kills, and keeps the results; it must be closed."""

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
        """Run the undisturbed run, with which the others are compared.

        Raises:
            ConfigError: the parts show a mistake when they are built.
            FailedAttemptError: the run does not complete.
        """
        ended = self._run_undisturbed("undisturbed")
        self.close()  # so that the other runs start with a new server
        self.undisturbed = UndisturbedRun(self.folder / "undisturbed")
        self.seconds = ended.seconds
        self.steps = max(self.undisturbed.steps)
        start_up_s = ended.start_up_s or 0.0
        self._start_up_s = {False: start_up_s, True: start_up_s}  # by whether the attempt resumes
        self._training_s = ended.seconds - start_up_s
        self.phases = set(ended.seen)
        if len(self.undisturbed.steps) > self.keep_checkpoints + 1:  # unlike this run, the others do not keep all
            self.phases.add("pruning")

    def run_round(self, kills: int, on_kill: Callable[[int], object]) -> Counter[str]:
        """Run one run, with at most `kills` kills, until it completes; return the phases in which it was killed.

        `on_kill` is called with the number of all kills so far.

        Raises:
            BitsDifferError: the run differs after a kill or at the end.
            FailedAttemptError: an attempt fails without being killed.
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
        """Run one attempt; with `progress_of`, the moment counts from a new checkpoint in that run."""
        # Random state that Python draws at its start, such as the hash seed, must not matter, but all forks of one
        # server share it. So the server is replaced now and then.
        if self._server and self._killed_here >= KILLS_PER_SERVER:
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
        """Return the expected duration of an attempt that continues from a step."""
        return self._start_up_s[resumes] + self._training_s * (1 - step / self.steps)

    def _learn(self, ended: EndedAttempt, resumes: bool, step: int) -> None:
        """Update the expected durations, because compiled or cached files may make later attempts faster."""
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
        # A second undisturbed run shows whether the resume is at fault, or the config never gives the same bits twice.
        self._run_undisturbed("undisturbed-again")
        again = self.undisturbed.differences(self.folder / "undisturbed-again", completed=True)
        raise BitsDifferError(found, self.undisturbed.path, run, again[0] if again else None)


def is_run(run: Path) -> bool:
    """Return whether there is a run to resume; a process that was killed very early has not begun one."""
    return (run / "config.yaml").is_file() and (run / ".hydra" / "config.yaml").is_file()


def raise_if_failed(ended: EndedAttempt, arguments: Sequence[str], output: Path) -> None:
    """Raise ConfigError or FailedAttemptError if an attempt failed without being killed."""
    if ended.code == 0:
        return
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    mistakes = [line.removeprefix("config error: ") for line in lines if line.startswith("config error: ")]
    if ended.code == BAD_CONFIG.exit_code and mistakes:
        raise ConfigError(mistakes[-1])
    shown = lines[-OUTPUT_LINES:]
    if ended.code > 0:
        how = f"exit code {ended.code}"
    elif (name := signal.Signals(-ended.code).name) in CRASHES:
        how = f"it crashed with {name}"
        crash = next((number for number, line in enumerate(lines) if line.startswith(CRASH_LINE)), None)
        if crash is not None:  # the stack has its innermost call first
            shown = lines[crash : crash + OUTPUT_LINES]
    else:
        how = f"{name} from another process"
    command = shlex.join(["python", "-m", "lmtrain", *arguments])
    raise FailedAttemptError(f"a run failed without being killed ({how}): {command}", "\n".join(shown))


def _newest(run: Path) -> int:
    return max(checkpoint_steps(run), default=0)
