"""Runs `python -m lmtrain …` in forks of a process that has already imported torch, which saves seconds per command.

Each line of the standard input is a request: arguments, folder, environment, the files for the output, and the file for
the exit code. The answer is a line with the process id.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from lmtrain.config.compose import set_up_hydra
from lmtrain.verify.fork_server import SLOW_IMPORTS, become_lmtrain


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is meant for the tests, which end their commands
    for slow in (*SLOW_IMPORTS, "lmtrain.sweep.task"):
        importlib.import_module(slow)
    set_up_hydra()  # Hydra's search for plugins takes longer than most commands
    gc.freeze()
    for line in sys.stdin:
        with contextlib.suppress(ChildProcessError):  # there are no children
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            watch(json.loads(line))


def watch(request: dict[str, Any]) -> NoReturn:
    """Run one command in a child process, and write its exit code, which only its parent can read."""
    child = os.fork()
    if not child:
        run(request)
    with contextlib.suppress(OSError):  # the child does the same, and may have been first
        os.setpgid(child, child)
    os.write(1, f"{child}\n".encode())
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # these belong to the server
        os.dup2(devnull, descriptor)
    _, status = os.waitpid(child, 0)
    code = Path(request["code"])
    code.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
    code.with_suffix(".new").rename(code)
    os._exit(0)


def run(request: dict[str, Any]) -> NoReturn:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), descriptor)  # appended: both may be one file
    become_lmtrain(request["arguments"])


if __name__ == "__main__":
    main()
