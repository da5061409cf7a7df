"""What all tests share. Commands that tests start inherit the environment set here."""

import copy
import os

# One thread for each of pytest's workers: more would only fight over the cores. Torch reads it when
# it is imported, which is not done here: who only hands out the tests need not wait for it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
# A hub that is unreachable for everyone: the tests must not depend on a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

import vitexplain


@pytest.fixture
def images():
    import torch

    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def state_of(model):
    """All that explaining a model changes for a while: modes, switches, hooks, what is frozen."""
    modules = {
        name: (
            module.training,
            getattr(module, "fused_attn", None),
            sorted(key for key in vars(module) if not key.startswith("_")),
            {key: len(hooks or ()) for key, hooks in vars(module).items() if "_hooks" in key},
        )
        for name, module in model.named_modules()
    }
    parameters = {
        name: (parameter.requires_grad, parameter.grad is None, parameter._version)
        for name, parameter in model.named_parameters()
    }
    return modules, parameters


@pytest.fixture(scope="session")
def bundled():
    """The bundled model, loaded once; whatever explains it must leave it as it was found."""
    import torch

    loaded = vitexplain.load_model("bundled")
    before, weights = state_of(loaded.model), copy.deepcopy(loaded.model.state_dict())
    yield loaded
    assert state_of(loaded.model) == before
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


@pytest.fixture
def few_steps(monkeypatch):
    """Integrated gradients in six steps instead of 56, where any map will do."""
    monkeypatch.setattr("vitexplain.methods.integrated_gradients.STEPS", 6)


@pytest.fixture(scope="session")
def shared():
    """The folder of data that only developers have; what needs it skips elsewhere."""
    from helpers import SHARED

    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def examples():
    from helpers import ROOT

    return ROOT / "examples"
