"""The commands that a run suggests at its end: each works in that situation."""

import shlex
from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY
from support.user_model import MY_MODEL


@pytest.mark.slow
def test_suggested_commands_trust_what_only_the_command_line_names(
    cli: Cli, tmp_path: Path, token_folder: Path
) -> None:
    (tmp_path / "mymodels.py").write_text(MY_MODEL)
    own = ["~model", "+model={_target_:mymodels.Mine,vocab_size:61}"]
    tiny = [text for text in TINY if not text.startswith("model")]
    done = cli(*tiny, *own, f"data.path={token_folder}", "trainer.max_steps=1", "hydra.run.dir=my run")
    assert done.returncode == 0, done.stderr
    commands = [line.strip() for line in done.stdout.partition("next: ")[2].splitlines()]
    assert [command.split()[3] for command in commands] == ["evaluate", "'resume=my"]
    for command in commands:
        done = cli(*shlex.split(command)[3:])
        assert done.returncode == 0, done.stderr
