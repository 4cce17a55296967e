"""Where and how precisely a run computes, and which trackers hear of it: Accelerate's part."""
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from ..errors import unknown_name

__all__ = ['accelerator_on', 'check_trackers']


def check_trackers(
    names:Iterable[str]|str, # Names of trackers that Accelerate knows, such as 'tensorboard'
    out:Path|None,           # Folder of the run
) -> list[str]:              # The same names
    "Raise ValueError for a tracker that does not exist, with the nearest, or that is not installed here"
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS: raise unknown_name('tracker', name, list(LOGGER_TYPE_TO_CLASS))
        if name not in [str(t) for t in get_available_trackers()]:
            raise ValueError(f'tracker {name!r} is not installed: pip install {name}; log.jsonl is written without any')
    if names and out is None: raise ValueError(f'trackers {names} write beside the checkpoints: give out=, a folder')
    return names


def accelerator_on(
    device:torch.device, # Device to compute on
    dtype:str='float32', # Precision: 'float32', 'bfloat16' or 'float16'
    trackers:Iterable[str]=(), # Names from `check_trackers`
    out:Path|None=None,  # Folder of the run
) -> Accelerator:        # Ready to prepare a run
    "Raise ValueError for a precision that this device cannot train in"
    mixed = dict(float32='no', bfloat16='bf16', float16='fp16')[dtype]
    if device.type == 'cpu' and dtype == 'float16':
        raise ValueError("float16 gradients underflow without a GPU's scaler: "
                         'train with bfloat16 or float32 on the CPU')
    # Accelerate keeps its state for the life of a process; the next run of a notebook may want another device.
    if os.environ.get('WORLD_SIZE', '1') == '1': AcceleratorState._reset_state(True)
    on_cpu, log_with = device.type == 'cpu', list(trackers) or None
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, log_with=log_with, project_dir=out)
