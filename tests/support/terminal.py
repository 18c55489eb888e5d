"""A command in a pseudo-terminal, as if a user typed."""

import os
import pty
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


class Terminal:
    """Runs a command whose input and output are a terminal."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["TERM"] = "dumb"  # readline then sends nothing but text
            os.execv(command[0], [*command])
        self.output = ""  # what was not waited for yet
        self._code: int | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, timeout: float = 120) -> str:
        """Return the output up to this text, with line ends as the text has them, and forget it."""
        deadline = time.monotonic() + timeout
        while text not in self._readable(text):
            if not select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{text!r} did not come: {self.output!r}")
            try:
                self.output += os.read(self.descriptor, 4096).decode(errors="replace")
            except OSError as error:  # the command has ended
                raise EOFError(f"{text!r} did not come: {self.output!r}") from error
        before, found, self.output = self._readable(text).partition(text)
        return before + found

    def _readable(self, text: str) -> str:
        return self.output if "\r" in text else self.output.replace("\r\n", "\n")

    def exit_code(self) -> int:
        """Wait for the end of the command."""
        _, status = os.waitpid(self.pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        return self._code
