"""`python -m lmtrain [VERB] …`: runs a verb, or trains if no verb is given."""

import ctypes
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import TracebackType

import lmtrain
from lmtrain.machine import PARENT, limit_spinning
from lmtrain.terminal.streams import outlive_reader, prepare_streams

PR_SET_PDEATHSIG = 1  # linux/prctl.h

VERBS = {  # each verb's module in lmtrain.commands
    "prepare": "prepare",
    "plan": "plan",
    "inspect": "inspect",
    "evaluate": "evaluate",
    "sample": "sample",
    "average": "average",
    "export": "export",
    "import": "import_run",
    "compare": "compare",
    "confirm": "confirm",
    "decide": "decide",
    "verify-resume": "verify_resume",
    "verify-device": "verify_device",
    "benchmark": "benchmark",
    "mcp": "mcp",
}
TEXT_OPTIONS = frozenset({"--prompt", "--stop", "--separator"})  # their values are not paths
# The results of these verbs are files, so they continue when nobody reads their output (`| head`).
FILE_WRITING_VERBS = ("prepare", "average", "export", "import", "verify-resume", "verify-device", "decide", "confirm")


def main() -> None:
    """Run a command and exit.

    The exit code is 0 for success, 2 for a mistake in config or input, 3 for a diverged run, 130 or 143 for a command
    stopped by a signal, and 1 for any other error.
    """
    prepare_streams()
    sys.excepthook = print_traceback
    limit_spinning()
    try:
        code = dispatch_and_report_errors(sys.argv[1:])
        # The work is done. Python takes a moment to shut down, and Ctrl-C then would only print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 128 + signal.SIGINT
    sys.exit(code)


def dispatch_and_report_errors(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; a user's mistake is printed as one line and returns 2."""
    from lmtrain.errors import ConfigError, LostRankError, os_error_line
    from lmtrain.terminal.as_text import visible

    try:
        if parent := os.environ.pop(PARENT, None):
            stop_with_parent(_whole_number(PARENT, parent))
        folder = _current_folder()
        if folder not in sys.path:
            sys.path.insert(0, folder)  # for a user's own modules, which the installed script would not find
        try:
            code = dispatch(_with_homes(arguments))
        except SystemExit:  # raised by argparse after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except PermissionError as error:
        print(f"config error: {os_error_line(error)}", file=sys.stderr)
        code = 2
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"config error: {visible(line)}", file=sys.stderr)
        code = 2
    except LostRankError as error:
        if error.unheard or os.environ.get("RANK") == "0":  # the process that failed has told so itself
            print(visible(str(error)), file=sys.stderr)
        code = 1
    return code


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an unexpected error, with control characters made visible: input may be in its message."""
    import traceback

    from lmtrain.terminal.as_text import visible

    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


def _with_homes(arguments: Sequence[str]) -> list[str]:
    """Expand `~` in every argument that is a path, so that no command has to; leave text for a model alone."""
    from lmtrain.terminal.paths import argument_with_home

    before = ["", *arguments]
    return [
        given if {option, given.partition("=")[0]} & TEXT_OPTIONS else argument_with_home(given)
        for option, given in zip(before, arguments, strict=False)
    ]


def stop_with_parent(parent: int) -> None:
    """Make this job of a sweep save and stop when the sweep is killed, so that no orphan keeps a GPU busy.

    The signal is SIGHUP, which does not interrupt a job that is already saving. Under `nohup`, which ignores SIGHUP,
    it is SIGTERM.
    """
    if sys.platform == "linux":
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM if ignored else signal.SIGHUP)
        if os.getppid() != parent:  # the parent ended before prctl was called
            sys.exit(128 + signal.SIGTERM)


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command given by the arguments and return its exit code."""
    from lmtrain.errors import ConfigError

    first = arguments[0] if arguments else ""
    if first == "--version":
        print(f"lmtrain {lmtrain.__version__}")
        return 0
    if first in ("-h", "--help"):
        from lmtrain.commands import help as help_command

        return help_command.main()
    if first in VERBS:
        from lmtrain.parallel.world import refuse_several_processes  # light: no verb should start later for it

        refuse_several_processes(first)
    if first in VERBS:
        if first in FILE_WRITING_VERBS:
            outlive_reader()
        command = importlib.import_module(f"lmtrain.commands.{VERBS[first]}")
        return int(command.main(arguments[1:]))
    if first and not first.startswith(("-", "+", "~")) and "=" not in first:
        raise ConfigError(
            f"{first}: is neither a verb ({', '.join(VERBS)}) nor an override (key=value){_way_out(first)}"
        )
    if first == "--rerun":
        from lmtrain.commands import rerun

        outlive_reader()
        return rerun.main(arguments[1:])
    from lmtrain.run.resumed_run import resume_requested

    run_dir, others = resume_requested(arguments)
    from lmtrain.commands import train

    if run_dir is not None:
        outlive_reader()
        return train.resume(run_dir, others)
    return train.main(arguments)


def _way_out(first: str) -> str:
    """Return the end of the message about a first argument that is no verb."""
    nearest = difflib.get_close_matches(first, [*VERBS, "train"], n=1)
    if nearest == ["train"]:
        return "; training needs no verb: python -m lmtrain [overrides]"
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _current_folder() -> str:
    from lmtrain.errors import ConfigError

    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed or replaced; change to an existing folder") from None


def _whole_number(name: str, value: str) -> int:
    from lmtrain.errors import ConfigError

    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}={value}: this environment variable must be a whole number; unset it") from None


if __name__ == "__main__":
    main()
