"""A fork exits as an interpreter does: it stops its threads and calls its exit functions."""

import subprocess
import sys

LEAVES_A_POOL = """
import atexit
from concurrent.futures import ThreadPoolExecutor

from lmtrain.verify.fork_server import become_lmtrain

pool = ThreadPoolExecutor(1)  # like the pool that the compiler keeps
pool.submit(int).result()
atexit.register(print, "its exit function was called")
become_lmtrain(["--version"])
"""


def test_idle_threads_of_an_executor_do_not_keep_a_fork_alive() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES_A_POOL], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["its exit function was called"]
    assert done.stderr == ""
