"""A process that hangs at the start is noticed; one that only takes long is waited for."""

import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.command_line import Cli
from support.ranks import start_ranks
from support.tokens import TINY, write_tokens
from torch.distributed import HashStore

from lmtrain.errors import LostRankError
from lmtrain.parallel import heartbeat as module
from lmtrain.parallel.heartbeat import heartbeat
from lmtrain.parallel.peers import LEAST_SILENCE_S, Peers
from lmtrain.parallel.world import World

# A user's model that stops one of the processes while it reads the config.
HANGS = """
import os
import signal
from lmtrain.model.llama import Llama

if os.environ.get("RANK") == "1":
    os.kill(os.getpid(), signal.SIGSTOP)

class Hangs(Llama):
    pass
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> tuple[Peers, Peers]:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    monkeypatch.setattr(module, "READ_S", 0.02)
    store = HashStore()
    first, second = Peers(World(0, 2), store), Peers(World(1, 2), store)
    second.silence_s = 0.5
    return first, second


def test_a_process_that_lives_is_waited_for(peers: tuple[Peers, Peers]) -> None:
    first, second = peers

    def prepare() -> None:
        with heartbeat(first.store, 0):
            time.sleep(1.5)
            first.tell("start", {"directory": "run"})

    thread = threading.Thread(target=prepare)
    thread.start()
    assert second.ask("start", 0, math.inf) == {"directory": "run"}
    thread.join()


def test_a_process_that_falls_silent_is_lost(peers: tuple[Peers, Peers]) -> None:
    first, second = peers
    with heartbeat(first.store, 0):
        time.sleep(0.1)
    began = time.monotonic()
    with pytest.raises(LostRankError, match="rank 0 has shown no life for 0 s: it hangs"):
        second.ask("start", 0, math.inf)
    assert time.monotonic() - began >= 0.5


def test_a_process_that_lives_but_never_answers_is_lost_after_the_limit(peers: tuple[Peers, Peers]) -> None:
    first, second = peers
    with heartbeat(first.store, 0), pytest.raises(LostRankError, match="rank 0 did not answer within 1 s"):
        second.ask("composed", 0, 1.0)


@pytest.mark.slow
def test_a_process_that_hangs_at_the_start_ends_the_run(cli: Cli, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    (tmp_path / "hangs.py").write_text(HANGS)
    arguments = [*TINY, "data.path=data/tiny", "model._target_=hangs.Hangs", "parallel.timeout_s=5"]
    first, second = start_ranks(cli, 2, *arguments, "hydra.run.dir=run")
    assert first.wait(90) == 1
    assert f"rank 1 has shown no life for {LEAST_SILENCE_S:.0f} s: it hangs" in first.stdout + first.stderr
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
