"""Runs `python -m lmtrain …` in forks of a process that has already imported torch, which saves seconds per command.

Each line of the standard input is a request: arguments, folder, environment, the files for the output, and the file for
the exit code. The answer is a line with the process id. With `jobs`, that many jobs of a sweep are forks too. They are
children of the sweep, as the interpreters are that it starts for a user.

Commands that import torch's compiler are forks of a second process, which has imported it.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from lmtrain.config.check import check
from lmtrain.config.compose import compose, set_up_hydra
from lmtrain.config.recorded.trust import names_that_need_trust
from lmtrain.sweep import pool
from lmtrain.terminal.paths import shell_folder
from lmtrain.torch_internals import COMPILER
from lmtrain.verify.fork_server import SLOW_IMPORTS, become_lmtrain

WITH_COMPILER = (COMPILER, "lmtrain.plan.make", "plotext")
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000  # linux/sched.h


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is meant for the tests, which end their commands
    for slow in (*SLOW_IMPORTS, "lmtrain.sweep.task"):
        importlib.import_module(slow)
    warm_up()
    gc.freeze()
    reader, writer = os.pipe()
    if os.fork():
        os.close(reader)
        serve(sys.stdin, os.fdopen(writer, "w", encoding="utf-8"))
    else:
        os.close(writer)
        serve(os.fdopen(reader, encoding="utf-8"))


def warm_up() -> None:
    """Do once what each command would otherwise do: Hydra's search for plugins, and reading the shipped configs."""
    set_up_hydra()
    config = compose([])
    check(config)
    names_that_need_trust(config)
    shell_folder.cache_clear()


def serve(requests: IO[str], with_compiler: IO[str] | None = None) -> None:
    """Run each request in a fork, and send those that import torch's compiler to the server that has it imported.

    The others must not have it: without it, a run takes other paths through torch's optimizers.
    """
    for line in requests:
        with contextlib.suppress(ChildProcessError):  # there are no children
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        request = json.loads(line)
        if with_compiler and imports_compiler(request["arguments"]):
            with_compiler.write(line)
            with_compiler.flush()
            continue
        if not with_compiler and COMPILER not in sys.modules:
            for slow in WITH_COMPILER:
                importlib.import_module(slow)
            gc.freeze()
        if not os.fork():
            if with_compiler:
                with_compiler.close()
            watch(request)


def imports_compiler(arguments: Sequence[str]) -> bool:
    return arguments[:1] == ["plan"] or "system.compile=true" in arguments or "data.batch_size=auto" in arguments


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
    if request["host"]:
        enter_host(*request["host"])
    for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), descriptor)  # appended: both may be one file
    fork_the_jobs(request["jobs"])
    become_lmtrain(request["arguments"])


def enter_host(namespace: str, name: str) -> None:
    """Move this process to a host of `support.network`."""
    libc = ctypes.CDLL(None, use_errno=True)
    for flag, file in ((CLONE_NEWNET, f"/run/netns/{namespace}"), (CLONE_NEWUTS, None)):
        if file is None:
            code = libc.unshare(flag)
        else:
            with open(file, "rb") as opened:
                code = libc.setns(opened.fileno(), flag)
        if code:
            raise OSError(ctypes.get_errno(), f"can't enter the host {name}")
    socket.sethostname(name)


def fork_the_jobs(count: int) -> None:
    """Make processes that wait for a job, and let the sweep of this process use them before it starts interpreters."""
    waiting: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            for _, other in waiting:
                other.close()
            ours.close()
            _wait_for_a_job(theirs)
        theirs.close()
        waiting.append((child, ours))
    if count:
        pool.subprocess = _Subprocess(waiting)


class _Subprocess:
    """Takes the place of the module `subprocess` in `lmtrain.sweep.pool`."""

    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

    def __init__(self, waiting: list[tuple[int, socket.socket]]) -> None:
        self.waiting = waiting

    def Popen(  # noqa: N802
        self, command: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str], pass_fds: Sequence[int], **rest: Any
    ) -> "ForkedJob | subprocess.Popen[bytes]":
        if not self.waiting:
            return subprocess.Popen(command, stdout=stdout, env=env, pass_fds=pass_fds, **rest)
        pid, connection = self.waiting.pop(0)
        request = json.dumps({"arguments": command[3:], "environment": dict(env)}).encode()
        with connection:
            socket.send_fds(connection, [len(request).to_bytes(4, "big")], [stdout.fileno(), *pass_fds])
            connection.sendall(request)
        return ForkedJob(pid)


class ForkedJob:
    """A job in a fork, with the interface of `subprocess.Popen` that the pool uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _wait_for_a_job(connection: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until there is a job, a Ctrl-C is meant for the sweep
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 8)
    if not size:  # the sweep has ended
        os._exit(0)
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += connection.recv(1 << 16)
    connection.close()
    job = json.loads(request)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[0], 2)
    become_lmtrain(job["arguments"])


if __name__ == "__main__":
    main()
