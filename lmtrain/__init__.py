"""A Hydra-composed experiment toolkit for training language models. Importing it imports no torch."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lmtrain")
except PackageNotFoundError:  # a checkout on the path, never installed
    __version__ = "0+unknown"
