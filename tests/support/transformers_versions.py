"""The versions of transformers that exported folders are loaded with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A folder with the last transformers 4, into which `.ci/run` installs it with `pip install --target`.
TRANSFORMERS_4 = "LMTRAIN_TEST_TRANSFORMERS_4"
VERSIONS = ["5", "4"]


def read_with(version: str, folder: Path, **requests: Any) -> dict[str, Any]:
    """Return what a version of transformers makes of a folder; skip the test if it is not installed."""
    path = os.environ.get(TRANSFORMERS_4, "")
    if version == "4" and not path:
        pytest.skip(f"{TRANSFORMERS_4} is not set: it names a folder with transformers 4 (see CONTRIBUTING.md)")
    asked, answer = folder.with_name(f"{folder.name}-asked.json"), folder.with_name(f"{folder.name}-answer.json")
    asked.write_text(json.dumps(requests), encoding="utf-8")
    subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("transformers_reading.py")),
            str(folder),
            str(asked),
            str(answer),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": path} if version == "4" else {}),
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    assert found["version"].startswith(f"{version}."), found["version"]
    return found
