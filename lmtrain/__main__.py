"""`python -m lmtrain [VERB] …`: picks the verb; without a verb, trains."""

import codecs
import ctypes
import difflib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import lmtrain
from lmtrain.machine import limit_spinning

PR_SET_PDEATHSIG = 1  # linux/prctl.h

VERBS = {  # and the module of lmtrain.commands that does it
    "prepare": "prepare",
    "plan": "plan",
    "inspect": "inspect",
    "evaluate": "evaluate",
    "sample": "sample",
    "import": "import_nanogpt",
    "compare": "compare",
    "verify-resume": "verify_resume",
    "benchmark": "benchmark",
}


def main() -> None:
    """Run a command and exit, with 0, 2 (a mistake in config or input), 3, 130, 143 or 1, as the README says."""
    if parent := os.environ.pop("LMTRAIN_PARENT", None):
        stop_with_parent(int(parent))
    limit_spinning()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own model; the installed script would not see it
    for stream in (sys.stdout, sys.stderr):
        # A mark that the locale's encoding lacks is shown as a question mark, and is no reason to fail.
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")
    try:
        code = dispatch_and_report_errors(sys.argv[1:])
        # All is done and said; what is left is Python's own end, which takes a moment and needs no interruption.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


def dispatch_and_report_errors(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; a user's mistake is one line and the exit code 2."""
    from lmtrain.errors import ConfigError

    try:
        code = dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough; Python would complain once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"config error: {line}", file=sys.stderr)
        code = 2
    return code


def stop_with_parent(parent: int) -> None:
    """Stop this job of a sweep, with everything saved, when the sweep is killed: no orphan goes on with its GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it came too late
            sys.exit(128 + signal.SIGTERM)


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that the arguments ask for, and return its exit code."""
    from lmtrain.errors import ConfigError

    first = arguments[0] if arguments else ""
    if first == "--version":
        print(f"lmtrain {lmtrain.__version__}")
        return 0
    if first in ("-h", "--help"):
        from lmtrain.commands import help as help_command

        return help_command.main()
    if first in VERBS:
        command = importlib.import_module(f"lmtrain.commands.{VERBS[first]}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        nearest = difflib.get_close_matches(first, VERBS, n=1)
        raise ConfigError(
            f"{first}: neither a verb ({', '.join(VERBS)}) nor an override (key=value)"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE: lmtrain trains in one process; start it without torchrun")
    if first == "--rerun":
        from lmtrain.commands import rerun

        return rerun.main(arguments[1:])
    resumed = [text for text in arguments if text.startswith("resume=") and text != "resume=null"]
    forked = any(text.startswith("fork=") for text in arguments)
    for key, fits in (("allow_changes", bool(resumed)), ("trust", bool(resumed) or forked)):
        if not fits and any(text.partition("=")[0] == key for text in arguments):
            raise ConfigError(f"{key}: goes with resume=RUN_DIR{' or fork=RUN_DIR' if key == 'trust' else ' alone'}")
    if "resume=" in resumed:
        raise ConfigError("resume=: empty; give a run directory")
    if resumed:
        others = [text for text in arguments if not text.startswith("resume=")]
        from lmtrain.commands import resume

        return resume.main(Path(resumed[-1].removeprefix("resume=").strip("'\"")), others)
    from lmtrain.commands import train

    return train.main(arguments)


if __name__ == "__main__":
    main()
