"""Removes secrets from texts that are stored: logs, errors, command lines, diffs.

A secret is the value of an environment variable with a name such as API_KEY, a password in ~/.netrc (where W&B keeps
its key), or the credentials before the @ in a URL.
"""

import json
import netrc
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
COUNT_NAME = re.compile(r"KEY|TOKEN", re.IGNORECASE)  # names that may also be counts: MAX_TOKENS=10000000
MIN_CHARS = 8  # shorter secrets would match parts of ordinary words
MIN_LINE_CHARS = 20  # for a secret of several lines, such as a private key, which a diff shows line by line
WORDS = frozenset({"anonymous", "disabled", "keychain", "optional", "required", "undefined", "unlimited"})
# Matches from :// on, because matching the URL's scheme would make every long word slow to search.
PASSWORD_IN_URL = re.compile(r"""://[^\s/:@"'<>]*:[^\s/"'<>]+@|(?<=http)(s?)://[^\s/:@"'<>]+@""")


def redact(text: str) -> str:
    """Return the text with each secret replaced by `<NAME>`."""
    if (names := _names()) and (found := _pattern(tuple(names))):
        text = found.sub(lambda match: f"<{names[match[0]]}>", text)
    return PASSWORD_IN_URL.sub(lambda match: f"{match[1] or ''}://<credentials>@", text)


def redacted(value: Any) -> Any:
    """Return a JSON value without secrets in its strings; numbers are unchanged, so that it stays valid JSON."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def _names() -> dict[str, str]:
    """Return the names of all secrets by their text, plain, quoted and URL-encoded, the longest text first."""
    secrets = {value.strip(): name for name, value in os.environ.items() if _is_secret(name, value.strip())}
    secrets = {**_netrc_passwords(os.environ.get("NETRC", "")), **secrets}
    spelled = {
        text: name
        for value, name in secrets.items()
        for text in (
            *(value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value), quote(value, safe="")),
            *(line for line in value.splitlines() if len(line) >= MIN_LINE_CHARS and not line.startswith("-----")),
        )
    }
    return dict(sorted(spelled.items(), key=lambda item: -len(item[0])))


def _is_secret(name: str, value: str) -> bool:
    if len(value) < MIN_CHARS or not SECRET_NAME.search(name) or value.lower() in WORDS:
        return False
    return not (value.isdecimal() and COUNT_NAME.search(name)) and not _is_path(value)


def _is_path(value: str) -> bool:
    """Return whether the value is a file path, such as that of a key file; a secret may also begin with a slash."""
    if not value.startswith(("/", "~/", "./", "../")):
        return False
    try:
        path = Path(value).expanduser()
        return path.exists() or (path.parent.exists() and len(path.parts) > 2)
    except (OSError, RuntimeError, ValueError):
        return False


@cache
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)))


@cache
def _netrc_passwords(path: str) -> dict[str, str]:
    try:
        hosts = netrc.netrc(path or Path.home() / ".netrc").hosts
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return {}
    return {password: f"password of {host}" for host, (_, _, password) in hosts.items() if len(password) >= MIN_CHARS}
