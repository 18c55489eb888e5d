"""`python -m lmtrain [VERB] …`: picks the verb; without a verb, trains."""

import ctypes
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import TracebackType

import lmtrain
from lmtrain.machine import limit_spinning
from lmtrain.terminal.streams import outlive_reader, prepare_streams

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
LEAVE_FILES = ("prepare", "import", "verify-resume")  # and so go on when nobody reads what they print


def main() -> None:
    """Run a command and exit, with 0, 2 (a mistake in config or input), 3, 130, 143 or 1, as the README says."""
    prepare_streams()
    sys.excepthook = print_traceback
    limit_spinning()
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
    from lmtrain.errors import ConfigError, os_error_line
    from lmtrain.terminal.as_text import visible

    try:
        if parent := os.environ.pop("LMTRAIN_PARENT", None):
            stop_with_parent(_whole_number("LMTRAIN_PARENT", parent))
        folder = _current_folder()
        if folder not in sys.path:
            sys.path.insert(0, folder)  # a user's own model; the installed script would not see it
        try:
            code = dispatch(_with_homes(arguments))
        except SystemExit:  # of argparse, after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, `head` say, has seen enough; Python would complain once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except PermissionError as error:
        print(f"config error: {os_error_line(error)}", file=sys.stderr)
        code = 2
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"config error: {visible(line)}", file=sys.stderr)
        code = 2
    return code


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody expected; a message may have in it what a stranger wrote."""
    import traceback

    from lmtrain.terminal.as_text import visible

    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


def _with_homes(arguments: Sequence[str]) -> list[str]:
    """Put the user's home into all arguments that are paths, so that no command has to; a prompt is a text."""
    from lmtrain.terminal.paths import argument_with_home

    before = ["", *arguments]
    return [
        given if "--prompt" in (option, given.partition("=")[0]) else argument_with_home(given)
        for option, given in zip(before, arguments, strict=False)
    ]


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
        if first in LEAVE_FILES:
            outlive_reader()
        command = importlib.import_module(f"lmtrain.commands.{VERBS[first]}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        nearest = difflib.get_close_matches(first, VERBS, n=1)
        raise ConfigError(
            f"{first}: neither a verb ({', '.join(VERBS)}) nor an override (key=value)"
            + (f"; did you mean {nearest[0]}?" if nearest else "")
        )
    from lmtrain.run.new_run import refuse_several_processes

    refuse_several_processes()
    if first == "--rerun":
        from lmtrain.commands import rerun

        outlive_reader()
        return rerun.main(arguments[1:])
    from lmtrain.run.resumed_run import resume_requested

    run_dir, others = resume_requested(arguments)
    if run_dir is not None:
        from lmtrain.commands import resume

        outlive_reader()
        return resume.main(run_dir, others)
    from lmtrain.commands import train

    return train.main(arguments)


def _current_folder() -> str:
    from lmtrain.errors import ConfigError

    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed or replaced; change to one that is there") from None


def _whole_number(name: str, value: str) -> int:
    from lmtrain.errors import ConfigError

    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}={value}: an environment variable that must be a whole number; unset it") from None


if __name__ == "__main__":
    main()
