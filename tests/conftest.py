import os

import pytest
import torch

import vitexplain  # noqa: F401  before timm is imported
from helpers import ROOT, SHARED

# A hub that is unreachable for everyone: the tests must not depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"


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
