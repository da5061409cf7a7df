"""What all tests share. Commands that tests start inherit the environment set here."""

import os

# One thread for each of pytest's workers: more would only fight over the cores. Read by torch
# when it is imported, hence above the imports.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
# A hub that is unreachable for everyone: the tests must not depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import vitexplain  # noqa: F401  before timm is imported
from helpers import ROOT, SHARED


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared():
    """The folder of data that only developers have; what needs it skips elsewhere."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def examples():
    return ROOT / "examples"
