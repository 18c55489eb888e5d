"""Runs `python -m lmtrain …` in forks of a process that has imported torch already, which saves seconds a command.

Each line of the standard input is a request: arguments, folder, environment, and the files that the output goes to.
The exit code is the answer, a line.
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path

from lmtrain import paths
from lmtrain.commands.victim import SLOW_IMPORTS, become_lmtrain


def main() -> None:
    for slow in SLOW_IMPORTS:
        importlib.import_module(slow)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["environment"])
            for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
                os.dup2(os.open(name, os.O_RDWR), descriptor)
            paths.STARTED_IN = Path.cwd()
            become_lmtrain(request["arguments"])
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
