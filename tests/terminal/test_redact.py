"""Tests that secrets are removed from texts and other text is unchanged."""

import json
import logging
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from lmtrain.run.directory import RunDirectory
from lmtrain.terminal.console import configure_logging
from lmtrain.terminal.redact import redact, redacted

SECRET = 's3cr3t/with "quotes"\nand lines'


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "hf_token", "MY_SECRET_X", "DB_PASSWORD", "PGPASSWD", "AWS_CREDENTIALS"]
)
def test_values_of_variables_with_secret_names_are_removed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    for text in (SECRET, repr(SECRET), json.dumps(SECRET), quote(SECRET), quote(SECRET, safe="")):
        shown = redact(f"before {text} after")
        assert "s3cr3t" not in shown
        assert f"<{name}>" in shown
    assert redacted({"a": [SECRET, 1.5], SECRET: None, 3: True}) == {
        "a": [f"<{name}>", 1.5],
        f"<{name}>": None,
        3: True,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "short"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("WANDB_API_KEY", ""),
        ("API_KEY_STORE", "disabled"),
        ("MAX_TOKENS", "1000000000"),
        ("SSH_KEY", "/usr/lib/python3/key.pem"),
        ("HOMEPAGE", "a value of no secret"),
    ],
)
def test_other_values_are_kept(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"a {value} b") == f"a {value} b"


def test_a_secret_that_looks_like_a_path_or_a_number_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG/bPxRfiCY")
    monkeypatch.setenv("PGPASSWORD", "12345678")
    assert redact("x/wJalrXUtnFEMI/K7MDENG/bPxRfiCY 12345678") == "x<AWS_SECRET_ACCESS_KEY> <PGPASSWORD>"


def test_secrets_are_removed_longest_first_and_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefghijkl")
    assert redact("abcdefghijkl abcdefgh") == "<B_KEY> <A_KEY>"
    monkeypatch.setenv("PRIVATE_KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END KEY-----")
    assert redact("+-----BEGIN KEY-----\n+MIIEvQIBADANBgkqhkiG9w0\n") == "+-----BEGIN KEY-----\n+<PRIVATE_KEY>\n"


def test_the_key_stored_by_wandb_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123456789abcdef\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert redact("key 0123456789abcdef.") == "key <password of api.wandb.ai>."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x", "https://<credentials>@host/x"),
        ("https://ghp_token@github.com", "https://<credentials>@github.com"),
        ("postgres://me:p@ss@host:5432/db and a@b", "postgres://<credentials>@host:5432/db and a@b"),
        ("ssh://git@host/x http://host:80/a@b me@host", "ssh://git@host/x http://host:80/a@b me@host"),
    ],
)
def test_passwords_in_urls_are_removed(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_large_diff_is_fast() -> None:
    started = time.process_time()
    for text in ("a" * 1_000_000, "http://" * 150_000, "://a:" * 200_000, "http://" + "a:" * 500_000):
        redact(text)
    assert time.process_time() - started < 5  # with backtracking it would take hours


def test_logs_and_json_contain_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_API_KEY", "verysecretvalue")
    before = logging.getLogger().handlers[:]
    configure_logging(tmp_path)
    try:
        raise RuntimeError("no login with verysecretvalue")
    except RuntimeError as error:
        logging.getLogger("lmtrain.x").error("failed: %s", error, exc_info=True)
    finally:
        logging.getLogger().handlers[:] = before
    with RunDirectory(tmp_path) as directory:
        directory.write_json("result.json", {"error": "verysecretvalue", "path": Path("verysecretvalue"), "n": 1})
    log = (tmp_path / "train.log").read_text()
    assert log.count("<MY_API_KEY>") == 3  # in the line, and in the traceback with its source line
    assert "Traceback" in log
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "error": "<MY_API_KEY>",
        "path": "<MY_API_KEY>",
        "n": 1,
    }
    for text in (log, (tmp_path / "result.json").read_text(), *capsys.readouterr()):
        assert "verysecretvalue" not in text
