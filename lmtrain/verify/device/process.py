"""The process that runs checks: `python -m lmtrain.verify.device.process DESCRIPTOR REQUEST` (see `processes.py`)."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmtrain.machine import limit_spinning
from lmtrain.verify.device.finding import FAILED, Finding, ImpossibleOverridesError
from lmtrain.verify.device.setting import Setting

CheckFunction = Callable[[Setting], Iterator[Finding]]
TRACE_LINES = 12


def run(descriptor: int, request: Mapping[str, Any]) -> None:
    """Run the requested checks and report through the file descriptor; end after the first one that raises."""
    os.set_inheritable(descriptor, False)  # a process that a check starts must not keep the pipe open
    setting = Setting(Path(request["folder"]), request["overrides"], request["seconds"])
    for name, function in request["checks"]:
        _report(descriptor, begun=name)
        try:
            for finding in function_of(function)(setting):
                _report(descriptor, finding=asdict(finding))
        except ImpossibleOverridesError as error:
            _report(descriptor, mistake=str(error))
            return
        except Exception as error:
            _report(descriptor, finding=asdict(finding_of(error)))
            _report(descriptor, ended=name)
            return
        _report(descriptor, ended=name)


def function_of(name: str) -> CheckFunction:
    """Return the function named `module:function`."""
    module, _, function = name.partition(":")
    found: CheckFunction = getattr(importlib.import_module(module), function)
    return found


def finding_of(error: Exception) -> Finding:
    """Return the finding of a check that raised an error."""
    first = str(error).strip().partition("\n")[0]
    trace = "".join(traceback.format_exception(error)).splitlines()
    return Finding(FAILED, f"{type(error).__name__}: {first}", values={"traceback": trace[-TRACE_LINES:]})


def _report(descriptor: int, **line: Any) -> None:
    os.write(descriptor, (json.dumps(line) + "\n").encode())


def main() -> None:
    limit_spinning()
    os.environ.setdefault("WANDB_MODE", "offline")
    run(int(sys.argv[1]), json.loads(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # freeing the memory of a large model at exit takes seconds


if __name__ == "__main__":
    main()
