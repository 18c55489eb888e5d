"""Parses command-line options; an error is one line that names the option, its value and the way out."""

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lmtrain.errors import ConfigError

MAX_INT64 = 2**63 - 1
SHOWN_CHARS = 40  # of a value that is not a number


@dataclass(frozen=True)
class WholeNumber:
    """The `type` of an option that accepts a 64-bit integer in a range, also written as 1e4."""

    at_least: int = 0
    at_most: int = MAX_INT64
    reason: str = ""  # for the lower limit

    def __call__(self, text: str) -> int:
        number = _whole(text)
        if number is None:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARS]}: not a whole number; {self}")
        if number < self.at_least:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARS]}: must be {self}")
        if number > self.at_most:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARS]}: must be {self} and at most {self.at_most}")
        return number

    def __str__(self) -> str:
        return f"at least {self.at_least}{self.reason}"


@dataclass(frozen=True)
class Number:
    """The `type` of an option that accepts a finite number in a range."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf

    def __call__(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            limits = f"; {self}" if str(self) else ""
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARS]}: not a finite number{limits}")
        if not self.at_least <= number <= self.at_most or number <= self.above:
            raise argparse.ArgumentTypeError(f"{text[:SHOWN_CHARS]}: must be {self}")
        return number

    def __str__(self) -> str:
        limits = {"above": self.above, "at least": self.at_least, "at most": self.at_most}
        return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))


def run_name(text: str) -> Path:
    """Return the name of a run or a folder of runs as a path; the `type` of an option.

    As a path, an empty name would mean the current folder, and some run below it.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; give a run directory or a name")
    return Path(text)


def output_file(text: str) -> Path:
    """Return the path of an output file after checking that its folder exists; the `type` of an option."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a folder; give a file")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: the folder {path.parent} does not exist; create it first")
    return path


class OptionParser(argparse.ArgumentParser):
    """A parser that raises a one-line ConfigError for any mistake in the options of a verb."""

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options, which may be mixed with positional arguments.

        Raises:
            ConfigError: An option is unknown, an argument is missing, or a value is out of range.
        """
        options, unknown = self.parse_known_intermixed_args(list(self._join_negative_values(arguments)))
        if unknown:
            raise unknown_option(next((word for word in unknown if word.startswith("-")), unknown[0]), self)
        return options

    def error(self, message: str) -> NoReturn:
        if found := re.fullmatch(r"argument (?:-\w/)?(\S+): (.*)", message, re.DOTALL):
            option, reason = found.groups()
            # A message of a `type` begins with the value; a message of argparse does not.
            message = f"{option}: {reason}" if reason.startswith(_OF_ARGPARSE) else f"{option} {reason}"
        raise ConfigError(f"{message}; see --help" if message.startswith("the following") else message)

    def _join_negative_values(self, arguments: Sequence[str]) -> Iterable[str]:
        """Yield the arguments with `--option -1e5` joined to one word: argparse would read `-1e5` as an option."""
        numeric = {
            name
            for action in self._actions
            if isinstance(action.type, WholeNumber | Number)
            for name in action.option_strings
        }
        words = iter(arguments)
        for word in words:
            value = next(words, None) if word in numeric else None
            if value is None:
                yield word
            elif value.startswith("-") and _is_number(value):
                yield f"{word}={value}"
            else:
                yield from (word, value)


_OF_ARGPARSE = ("expected", "invalid", "not allowed", "ignored", "ambiguous")


def unknown_option(word: str, parser: argparse.ArgumentParser) -> ConfigError:
    """Return the error for an unknown word, with the nearest option if there is one."""
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return ConfigError(f"{word}: is one argument too many; see --help")
    names = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(flag, names, n=1, cutoff=0.7)
    return ConfigError(f"{flag}: no such option; " + (f"did you mean {near[0]}?" if near else "--help lists them"))


def _whole(text: str) -> int | None:
    """Return the integer that a text spells, also as 1e4; None if it is not an integer."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
