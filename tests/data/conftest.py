"""Fixtures of the data tests: small token files."""

from pathlib import Path

import numpy as np
import pytest
from support.numbered_tokens import write


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 1,003 tokens that count upwards: 125 blocks of 8, their last target, and two more tokens."""
    return write(tmp_path_factory.mktemp("numbered"), train=np.arange(1_003), val=np.arange(500, 600))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 20,001 tokens: 10,000 blocks of 2, which are more than two chunks of the order."""
    return write(tmp_path_factory.mktemp("long"), train=np.arange(20_001))
