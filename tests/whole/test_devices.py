"Devices and precisions by name, and what is said where something is missing."
import pytest
import torch

from adaptive_tokens import devices
from adaptive_tokens.devices import devices_here, resolve_device, resolve_dtype


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)


def test_auto_takes_the_fastest_kind_that_is_there(monkeypatch, only_cpu):
    assert resolve_device() == torch.device('cpu') and devices_here() == ['cpu']
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert resolve_device().type == 'mps'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert resolve_device().type == 'cuda' and resolve_device('cpu').type == 'cpu'


@pytest.mark.parametrize('name', ['cuda', 'mps'])
def test_an_absent_device_is_named_with_what_is_there(only_cpu, name):
    with pytest.raises(ValueError, match=f"device '{name}' is not available on this machine; here: cpu"):
        resolve_device(name)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'cdua'.*cuda"): resolve_device('cdua')
    with pytest.raises(ValueError, match="'bf16'.*float16"): resolve_dtype('bf16')


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'float16'])
def test_dtypes(name): assert resolve_dtype(name) is getattr(torch, name)


@pytest.mark.parametrize('triton, tools, said', [
    (None, {'gcc'}, 'needs triton'), (1, set(), 'neither gcc nor clang'), (1, {'clang'}, '')])
def test_what_a_compiler_for_cuda_lacks_is_named(triton, tools, said, monkeypatch):
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr(devices, 'find_spec', lambda name: triton)
    monkeypatch.setattr(devices.shutil, 'which', lambda name: name if name in tools else None)
    if not said: return devices.check_compiler('cuda')
    with pytest.raises(ValueError, match=said): devices.check_compiler('cuda')
