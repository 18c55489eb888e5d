"""Runs the examples of a documentation page, as a reader would who follows it from top to bottom in an empty folder.

What a page contains, by the language of the code block:

- `console`: commands, each after `$ `, with their output below. A command must succeed, or end with exit code 2 where
  the page shows a `config error:`. Shown output must be what the command prints. Numbers, and the times in the names
  of runs, may differ; `…` matches anything, also any number of lines. Output that is not shown is not compared.
  `pip`, `git` and `cd` are not run. Where the page shows `^C`, the command gets Ctrl-C after the line above it, and
  must end with exit code 130.
- `python`: code that runs in this process, all blocks of a page in one namespace; `>>>` examples are doctests.
- `python`, `yaml`, `text` and others whose first line is a comment with a file name (`# conf/model/bigram.yaml`):
  a file, written without that line.
- Anything else is only shown.

The names of runs (`20261126-101500-1a2b`) on a page are examples. Where a command's output first shows one, it is tied
to the run that the command really made, and later commands of the page use that run.
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from threading import Timer

from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

from support.command_line import Cli

RUN_NAME = re.compile(r"\d{8}-\d{6}(?:-[0-9a-f]{4})?\b")
FILE_NAME = re.compile(r"# ((?:[\w.-]+/)*[\w-]+\.(?:py|yaml|txt|json|toml))\n")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)*(?:e[+-]?\d+)?")
DURATION = re.compile(r"#(?:\.#)?\s?(?:ms|[dhms])(?:#[hms])*\b")
NOT_RUN = ("pip", "git", "cd")
LANGUAGES_OF_FILES = ("yaml", "text", "json", "toml")
SECONDS = 600  # no command of a page takes longer
CTRL_C = "^C"  # as a terminal shows it
FORKED_JOBS = 12  # no sweep of a page has more jobs
LMTRAIN = "python -m lmtrain "
SHELL_SYNTAX = re.compile(r"[|<>&;$`]")


@dataclass
class Command:
    """A command of a page, with the output that the page shows below it."""

    line: str
    shown: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The exit code that the page lets a reader expect."""
        if CTRL_C in self.shown:
            return 130
        return 2 if any(line.startswith("config error:") for line in self.shown) else 0


@dataclass
class Page:
    """A page whose examples run in `folder`, with `environment`; `renew` replaces outputs that differ.

    `cli` runs the commands that are only `python -m lmtrain …`, and bash the others.
    """

    path: Path
    folder: Path
    environment: dict[str, str]
    cli: Cli
    renew: bool = False
    names: dict[str, str] = field(default_factory=dict)  # on the page → in the folder: of runs, and what is shortened
    renewed: list[tuple[str, str]] = field(default_factory=list)  # blocks: before → after

    def run(self) -> None:
        """Run all examples, in order. The current folder must be `folder`.

        Raises:
            AssertionError: a command failed, or printed something else than the page shows.
        """
        for example in self.examples():
            example.evaluate()
        if self.renewed:
            text = self.path.read_text(encoding="utf-8")
            for before, after in self.renewed:
                text = text.replace(before, after)
            for shown, real in self.names.items():
                text = text.replace(shown, real)
            self.path.write_text(text, encoding="utf-8")

    def examples(self) -> Iterator[Example]:
        """Parse the page."""
        sybil = Sybil(
            parsers=[
                CodeBlockParser("console", self._run_commands),
                self._python_blocks,
                *(CodeBlockParser(language, self._write_file) for language in LANGUAGES_OF_FILES),
            ],
        )
        return iter(sybil.parse(self.path).examples())

    def _python_blocks(self, document: Document) -> Iterator[Region]:
        for region in PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)(document):
            if isinstance(region.parsed, str) and FILE_NAME.match(region.parsed):
                region.evaluator = self._write_file
            yield region

    def _write_file(self, example: Example) -> None:
        found = FILE_NAME.match(example.parsed)
        if found:
            path = self.folder / found[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(example.parsed[found.end() :], encoding="utf-8")

    def _run_commands(self, example: Example) -> None:
        after = []
        for command in commands(example.parsed):
            place = f"{self.path.name}:{example.line}: {command.line}"
            if shlex.split(command.line, comments=True)[0] in NOT_RUN:
                after += [f"$ {command.line}", *command.shown]
                continue
            before = self._run_names()
            exit_code, printed = self._run(command)
            assert exit_code == command.exit_code, f"{place}\nexit code {exit_code}\n{printed}"
            made = sorted(self._run_names() - before)
            fresh = [
                name
                for name in dict.fromkeys(RUN_NAME.findall("\n".join(command.shown)))
                if name not in self.names and name not in self.names.values()
            ]
            self.names |= dict(zip(fresh, made, strict=False))
            output = printed.rstrip().splitlines()
            if command.shown and not same_output(command.shown, output):
                assert self.renew, f"{place}\nshown:\n" + "\n".join(command.shown) + f"\nprinted:\n{printed}"
                command.shown = output
            after += [f"$ {command.line}", *command.shown]
        before_text = example.parsed.rstrip("\n")
        if self.renew and "\n".join(after) != before_text:
            self.renewed.append((before_text, "\n".join(after)))

    def _run(self, command: Command) -> tuple[int, str]:
        """Run a command; return its exit code and what it printed."""
        if command.line.startswith(LMTRAIN) and not SHELL_SYNTAX.search(command.line) and CTRL_C not in command.shown:
            return self._run_lmtrain(self._with_real_names(command.line))
        with subprocess.Popen(
            ["bash", "-c", self._with_real_names(command.line)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        ) as process:
            watchdog = Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))
            watchdog.start()
            try:
                return _interrupted(process, command) if CTRL_C in command.shown else _finished(process)
            finally:
                watchdog.cancel()

    def _run_lmtrain(self, line: str) -> tuple[int, str]:
        """Run `python -m lmtrain …` by the fork server, which saves the seconds that importing torch takes."""
        expand = ["bash", "-c", f"printf '%s\\0' {line.removeprefix(LMTRAIN)}"]  # quotes, globs, continued lines
        arguments = subprocess.check_output(expand, cwd=self.folder, encoding="utf-8").split("\0")[:-1]
        variables = {key: value for key, value in self.environment.items() if key != "PYTHONPATH"}
        jobs = FORKED_JOBS if "-m" in arguments else 0
        process = self.cli.start(*arguments, folder=self.folder, merged=True, forked_jobs=jobs, **variables)
        return process.wait(SECONDS), process.stdout

    def _run_names(self) -> set[str]:
        return {found[0] for path in self.folder.glob("outputs/*/*") if (found := RUN_NAME.search(path.name))}

    def _with_real_names(self, line: str) -> str:
        for shown, real in self.names.items():
            line = line.replace(shown, real)
        return line


def _finished(process: "subprocess.Popen[str]") -> tuple[int, str]:
    printed, _ = process.communicate()
    return process.returncode, printed


def _interrupted(process: "subprocess.Popen[str]", command: Command) -> tuple[int, str]:
    """Press Ctrl-C after the line that the page shows above `^C`."""
    last = command.shown[command.shown.index(CTRL_C) - 1]
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if CTRL_C not in printed and same_output([last], [line]):
            os.killpg(process.pid, signal.SIGINT)
            printed += f"{CTRL_C}\n"
    return process.wait(), printed


def commands(block: str) -> list[Command]:
    """Return the commands of a `console` block; a backslash at the end of a line continues the command."""
    found: list[Command] = []
    continued = False
    for line in block.rstrip("\n").splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
        elif continued:
            found[-1].line += f"\n{line}"
        elif found:
            found[-1].shown.append(line.rstrip())
        else:
            raise AssertionError(f"a console block begins with a command after `$ `: {line}")
        continued = line.endswith("\\") and not found[-1].shown
    return found


def same_output(shown: list[str], printed: list[str]) -> bool:
    """Return whether the output is the one that is shown, except numbers, spaces and what `…` leaves out."""
    pattern = ""
    for line in map(without_numbers, shown):
        if line == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, line.split("…"))) + "\n"
    return re.fullmatch(pattern, "".join(f"{without_numbers(line)}\n" for line in printed)) is not None


def without_numbers(line: str) -> str:
    """Return the line with `#` for each number, run name and time, and single spaces and rules.

    A dash where a table has no value counts as a number: whether there is one can depend on the time that a run takes.
    """
    line = NUMBER.sub("#", RUN_NAME.sub("#", re.sub(r"(?<=\s)–(?=\s|$)", "0", line)))
    line = DURATION.sub("#", re.sub(r"(?<=#)[kMGT]?(?:B|%)?(?=\W|$)", "", line))
    return re.sub(r"([─━-])\1+", r"\1", re.sub(r"\s+", " ", line)).strip()
