import os
import warnings
from types import SimpleNamespace

import pytest
import torch

from visus.devices import (
    computing,
    copy_to,
    describe_device,
    describe_devices,
    exact_device,
    noting_nondeterminism,
    own_device,
    select_device,
)
from visus.errors import UsageError


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    properties = SimpleNamespace(name="GeForce GTX 1060 6GB", total_memory=6144 * 1024**2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["cpu", "auto", "", "CPU"])
def test_without_a_gpu_it_is_the_cpu(no_gpu, name):
    assert select_device(name) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "index"), [("0", 0), ("2", 2), ("3,1", 3), ("cuda", 0), ("cuda:1", 1), ("auto", 0)]
)
def test_indices_are_cuda_devices(four_gpus, name, index):
    assert select_device(name) == torch.device("cuda", index)


@pytest.mark.parametrize("name", ["0", "cuda", "0,1,2,3"])
def test_a_device_that_is_not_there_is_named(no_gpu, name):
    with pytest.raises(
        UsageError, match=f"CUDA unavailable, invalid device '{name}' requested; use --device cpu"
    ):
        select_device(name)


@pytest.mark.parametrize("name", ["4", "0,0", "-1"])
def test_indices_beyond_the_devices_are_refused(four_gpus, name):
    with pytest.raises(UsageError, match="expected different devices from 0 to 3"):
        select_device(name)


@pytest.mark.parametrize("name", ["gpu", "a,b", "cuda:x"])
def test_a_word_that_is_no_device_is_refused(four_gpus, name):
    with pytest.raises(UsageError, match="expected auto, cpu"):
        select_device(name)


def test_the_batch_is_a_multiple_of_the_devices(four_gpus):
    assert select_device("0,1,2,3", batch_size=8).index == 0
    with pytest.raises(UsageError, match="10 is not a multiple of the 4 devices; use 8"):
        select_device("0,1,2,3", batch_size=10)


def test_mps_elsewhere_is_refused(no_gpu):
    with pytest.raises(UsageError, match="MPS unavailable"):
        select_device("mps")


def test_devices_are_described_as_in_the_notes(four_gpus):
    assert [each.device for each in describe_devices()][:3] == ["cpu", "0", "1"]
    text = describe_device(torch.device("cuda", 1))
    assert text == "Using CUDA device1 (name='GeForce GTX 1060 6GB', total_memory=6144MB)"


def test_the_cpu_has_a_name_and_memory():
    cpu = describe_devices()[0]
    assert cpu.name
    assert 100 < cpu.memory_mb < 10**8
    assert describe_device(torch.device("cpu")).startswith("Using CPU (")


def test_operations_without_a_deterministic_kernel_are_noted():
    with computing(), noting_nondeterminism() as found:
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", UserWarning, stacklevel=1)
    assert found == {"put_"}


def test_a_cublas_that_was_begun_otherwise_is_noted():
    said = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
        "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses "
        "CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set ..."
    )
    with noting_nondeterminism() as found:
        warnings.warn(said, UserWarning, stacklevel=1)
    assert found == {"CuBLAS"}


@pytest.mark.parametrize(
    ("asked", "rank", "size", "own"),
    [("auto", 2, 4, "cuda:2"), ("3,1", 1, 2, "cuda:1"), ("2", 0, 1, "cuda:2"), ("cpu", 5, 8, "cpu")],
)
def test_each_process_computes_where_its_device_is(four_gpus, monkeypatch, asked, rank, size, own):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert own_device(asked, rank, size) == torch.device(own)
    assert current == ([torch.device(own).index] if size > 1 and own != "cpu" else [])


def test_more_processes_than_devices_are_refused(four_gpus):
    with pytest.raises(UsageError, match="a device for each process, found 8 devices for 8"):
        own_device("auto", 7, 8)


def test_cublas_is_deterministic_meanwhile(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with computing():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with computing(deterministic=False):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_what_the_user_wants_of_cublas_stands(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with computing():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_generators_of_devices_get_their_states_back(monkeypatch):
    states = {0: torch.tensor([1], dtype=torch.uint8), 1: torch.tensor([2], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    with computing():
        states[0], states[1] = states[1], states[0]
        torch.rand(1)
    assert (int(states[0]), int(states[1])) == (1, 2)


def test_a_device_that_was_not_used_before_begins_as_the_seed_has_it(monkeypatch):
    begun, seeds = [False], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun[0])
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    seeds.clear()
    with computing():
        torch.default_generator.manual_seed(77)
        begun[0] = True
    assert seeds == [5]


def test_apples_generator_gets_its_state_back(monkeypatch):
    state = [torch.tensor([1])]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda given: state.__setitem__(0, given))
    with computing():
        state[0] = torch.tensor([2])
    assert int(state[0]) == 1


def test_what_stays_on_the_cpu_is_not_copied():
    images = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert copy_to(images, torch.device("cpu")) is images


def test_what_goes_to_cuda_is_pinned_first(monkeypatch):
    done = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: done.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: done.append((device.type, how)))
    copy_to(torch.zeros(2), torch.device("cuda"))
    assert done == ["pinned", ("cuda", {"non_blocking": True, "memory_format": torch.preserve_format})]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_copies_hold_the_same_values_in_the_same_layout():
    images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    copied = copy_to(images, torch.device("cuda"))
    assert copied.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(copied.cpu(), images)


@pytest.mark.parametrize(("device", "exact"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_apples_devices_have_no_float64(device, exact):
    assert exact_device(torch.device(device)) == torch.device(exact)
