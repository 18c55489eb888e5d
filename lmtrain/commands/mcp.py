"""`python -m lmtrain mcp`: a server through which a coding agent plans, trains, sweeps, compares and decides."""

from collections.abc import Sequence
from pathlib import Path

from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed
from lmtrain.terminal.options import Number, OptionParser


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain mcp",
        description="Serves lmtrain's commands to a coding agent by the Model Context Protocol, over standard input "
        "and output. The agent stays inside one folder and within a compute budget.",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="the folder that the agent may use (default: the current one)"
    )
    parser.add_argument(
        "--hours",
        type=Number(above=0),
        default=1.0,
        help="hours that all commands together may take in this folder, counted over all servers (default: 1)",
    )
    parser.add_argument(
        "--network",
        action="store_true",
        help="allow uploads to W&B and downloads from the Hugging Face hub (default: offline)",
    )
    options = parser.read(arguments)
    if not options.folder.is_dir():
        raise ConfigError(f"--folder {options.folder}: no such folder")
    if not is_installed("mcp"):
        raise ConfigError("mcp: needs the package mcp; install it with pip install 'lmtrain[mcp]'")
    from lmtrain.mcp.server import serve

    serve(options.folder, options.hours, network=options.network)
    return 0
