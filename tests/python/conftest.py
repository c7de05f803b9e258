"""What the tests of the Python package share, and the register of those that may be skipped."""

import importlib.util
import os
from pathlib import Path

import pytest

import llamaprobe

ROOT = Path(__file__).parents[2]

# The tests that may be skipped, by what they need: packages too large for `.ci/run`, which are run by hand.
REGISTER = {
    "torch": ["test_torch_reads_every_dtype_without_a_copy"],
    "transformers": ["test_hook_edits_are_those_of_transformers"],
}


def need(package, request):
    """Skips a registered test where a package is missing; LLAMAPROBE_REQUIRE_PEERS=1 makes that a failure."""
    if importlib.util.find_spec(package):
        return
    name = request.node.originalname
    assert name in REGISTER.get(package, []), f"{name} may not be skipped for {package}"
    assert os.environ.get("LLAMAPROBE_REQUIRE_PEERS") != "1", f"{name} needs {package}"
    pytest.skip(f"skipped: no {package}")


def pytest_collection_modifyitems(items):
    there = {item.originalname for item in items if hasattr(item, "originalname")}
    files = {item.path.name for item in items}
    if "test_peers.py" in files:
        for package, names in REGISTER.items():
            assert not set(names) - there, f"{names} of the register for {package} do not exist"


@pytest.fixture(scope="session")
def model():
    """The embedded model in f32: 3 documents of different lengths fit its vocabulary."""
    return llamaprobe.Model.load("embedded", device="cpu", dtype="f32")


@pytest.fixture(scope="session")
def docs(model):
    ids = model.encode("Input: x\nOutput: y\n\nInput: z\nOutput:")
    return [ids, ids[:3], ids[::-1][:7]]


@pytest.fixture
def golden():
    return ROOT / "tests" / "golden"
