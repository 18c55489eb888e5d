"""A mark that skips tests if torch can't compile a model on this machine."""

import shutil
import sysconfig
from pathlib import Path

import pytest

COMPILES = bool(shutil.which("g++")) and (Path(sysconfig.get_path("include")) / "Python.h").exists()
NEEDS_A_COMPILER = pytest.mark.skipif(not COMPILES, reason="torch.compile needs g++ and Python.h (python3-dev)")
