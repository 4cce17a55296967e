"""Devices and precisions by name, what must be waited for, and a mean over all processes."""
import os
import shutil
import sys
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import unknown_name

__all__ = ['DEVICES', 'DTYPES', 'check_compiler', 'devices_here', 'mean_over_ranks', 'out_of_memory', 'resolve_device',
           'resolve_dtype', 'synchronize']

DEVICES = ('auto', 'cpu', 'cuda', 'mps')
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def devices_here(
) -> list[str]: # Names, the fastest first
    "The kinds of device that torch can use on this machine"
    here = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    return [name for name, there in here.items() if there]


def resolve_device(
    name:str='auto', # Kind of device: 'auto', 'cpu', 'cuda' or 'mps'
) -> torch.device:   # Device of that kind
    "Raise ValueError for a name that does not exist (with the nearest) or a device that is not here (with what is)"
    if name not in DEVICES: raise unknown_name('device', name, DEVICES)
    here = devices_here()
    if name == 'auto': return torch.device(here[0])
    if name not in here: raise ValueError(f'device {name!r} is not available on this machine; here: {", ".join(here)}')
    return torch.device(name)


def resolve_dtype(
    name:str='float32', # Precision: 'float32', 'bfloat16' or 'float16'
) -> torch.dtype:       # Type in which products are computed
    "Raise ValueError with the nearest names for one that does not exist"
    if name not in DTYPES: raise unknown_name('dtype', name, DTYPES)
    return DTYPES[name]


def synchronize(
    device:torch.device, # Device that was given work
):
    "Return when the device has finished its work; a CPU always has"
    if device.type == 'cuda': torch.cuda.synchronize(device)
    if device.type == 'mps': torch.mps.synchronize()


def check_compiler(
    kind:str, # Kind of device, such as 'cpu'
    who:str='torch.compile', # Name of what needs the compiler
    remedy:str='leave compiled out', # Advice for where none can be installed
):
    "Raise ValueError, naming what is missing, where something cannot be compiled"
    builder = os.environ.get('CXX') or ('clang++' if sys.platform == 'darwin' else 'g++')
    if kind == 'cpu' and not shutil.which(builder):
        raise ValueError(f'{who} on the CPU needs the C++ compiler {builder!r}, which is not on PATH: install it, name '
                         f'another by the environment variable CXX, or {remedy}')
    if kind == 'cuda' and not find_spec('triton'):
        raise ValueError('torch.compile on CUDA needs triton: install it, or leave compiled out')
    if kind == 'cuda' and not any(map(shutil.which, filter(None, (os.environ.get('CC'), 'gcc', 'clang')))):
        raise ValueError('torch.compile on CUDA needs a C compiler, and neither gcc nor clang is on PATH: install one, '
                         'name another by the environment variable CC, or leave compiled out')


def out_of_memory(
    error:BaseException, # Error from any device
) -> bool:               # True where memory was what lacked
    "CUDA has a class for it, others only words"
    said = str(error).lower()
    words = 'out of memory', "can't allocate memory", 'not enough memory'
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(o in said for o in words)


def mean_over_ranks(
    mean:Tensor, # Mean over this process's images, any shape
) -> Tensor:     # Same shape: mean over all processes in value, this process's own in gradient
    "A batch mean as one process with the whole batch would see it, for processes with equally many images"
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1: return mean
    total = mean.detach().clone()
    dist.all_reduce(total)
    return mean + (total / dist.get_world_size() - mean.detach())
