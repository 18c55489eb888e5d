"""A run of an older version is resumed with keys that are newer than its config."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import Cli
from support.tokens import TINY

NEWER = {"model": ("attention", "recompute", "dropout"), "trainer": ("global_batch_size", "eval_tokens")}


def make_older(run: Path) -> None:
    """Remove newer keys from the config of a run."""
    for path in (run / "config.yaml", run / ".hydra" / "config.yaml"):
        config: Any = yaml.safe_load(path.read_text())
        for group, keys in NEWER.items():
            for key in keys:
                del config[group][key]
        del config["sample_tokens"]
        path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_an_older_run_is_resumed_with_newer_keys(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "out"
    started = cli(*TINY, f"data.path={token_folder}", "hydra.run.dir=out", "trainer.max_steps=2")
    assert started.returncode == 0, started.stderr
    make_older(run)
    needed = "sample_tokens=0"
    for arguments, message in (
        ([], "sample_tokens: is missing; give sample_tokens=VALUE"),
        ([needed, "model.atention=math"], "model.atention=math: unknown key; did you mean model.attention?"),
        ([needed, "model.attention=mat"], "model.attention=mat: input should be 'auto', 'math'"),
        ([needed, "trainer.parts=3"], "trainer.parts=3: is set by lmtrain itself; leave it out"),
        ([needed, "hydra.run.dir=other"], "hydra.run.dir=other: unknown key"),
        (
            [needed, "trainer.global_batch_size=64"],
            "trainer.gradient_accumulation_steps: 2 → 16; trainer.global_batch_size: null → 64)",
        ),
        ([needed, "model.dropout=0.1"], "would change the run (model.dropout: 0.0 → 0.1); start a new run, or allow"),
    ):
        refused = cli("resume=out", *arguments)
        assert refused.returncode == 2, refused.stdout
        assert message in refused.stderr
    changes = ["model.attention=math", "model.recompute=none", "model.dropout=0.0", "trainer.global_batch_size=8"]
    done = cli("resume=out", *changes, needed, "trainer.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model"]["attention"], config["trainer"]["global_batch_size"]) == ("math", 8)
    (resumed,) = json.loads((run / "environment.json").read_text())["resumes"]
    # A value that is the default changes nothing.
    expected = {"model.attention: auto → math", "trainer.global_batch_size: null → 8", "trainer.max_steps: 2 → 4"}
    assert {line for line in resumed["changes"] if not line.startswith(("scheduler.", "sample_tokens"))} == expected
    again = cli("resume=out", "trainer.eval_tokens=null", "allow_changes=trainer.eval_tokens", "trainer.max_steps=5")
    assert again.returncode == 0, again.stderr
