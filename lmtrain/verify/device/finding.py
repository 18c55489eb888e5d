"""A check of a device, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmtrain.errors import ConfigError

PASSED, FAILED = "passed", "failed"
NOT_APPLICABLE = "not applicable"  # this device or machine lacks what the check is about
NOT_RUN = "not run"  # there was no time left
MEASURED = "measured"  # a figure, which cannot fail


class ImpossibleOverridesError(ConfigError):
    """The user's overrides name something that this device cannot do, so that no check can run."""


@dataclass(frozen=True)
class Check:
    """A check that `--only` can select.

    Attributes:
        name: Its name on the command line.
        function: `module:function` below `lmtrain.verify.device`. It takes a Setting and yields findings.
        meaning: What a failure means for the user.
        process: Checks with the same name here share a process, one after the other.
        limit_s: Seconds after which it is stopped and counts as failed.
    """

    name: str
    function: str
    meaning: str
    process: str
    limit_s: float


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    Attributes:
        status: One of the words above.
        result: What was found, in a few words.
        what: What exactly was checked, if a check finds several things.
        values: The numbers behind it, for the JSON file.
    """

    status: str
    result: str
    what: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def judged(passed: bool, result: str, what: str = "", **values: Any) -> Finding:
    """Return a finding that passed or failed."""
    return Finding(PASSED if passed else FAILED, result, what, values)
