"""A fork ends as an interpreter does: after its threads, which are asked to end, and with its exit functions."""

import subprocess
import sys

LEAVES_A_POOL = """
import atexit
from concurrent.futures import ThreadPoolExecutor

from lmtrain.verify.fork_server import become_lmtrain

pool = ThreadPoolExecutor(1)  # as the compiler keeps one
pool.submit(int).result()
atexit.register(print, "its exit function was called")
become_lmtrain(["--version"])
"""


def test_idle_threads_of_an_executor_do_not_keep_a_fork_from_its_end() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES_A_POOL], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["its exit function was called"]
    assert done.stderr == ""
