"""The device of a run, its number format, compilation, threads, memory and random generators."""

from lmtrain.system.system import System as System
