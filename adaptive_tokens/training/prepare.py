"""From a model, loaders and numbers to a run that stands at its first step, or where a state left it."""
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3, random_seed
from torch import Tensor, nn

from ..backbones.backbone import FAMILIES, check_images, timm_model
from ..models.model import is_adaptive
from .checks import check_length, check_out, peek_batches
from .losses import frozen
from .recipe import Recipe, make_mixup, make_optimizer, make_scheduler
from .resume import restore
from .run import Run
from .signature import check_signature, describe_data, run_signature
from .state import fingerprint, newest_state, remove_leftovers, states

__all__ = ['build_run', 'prepare_run']


def found_state(
    out:Path|None, # Folder of the run
    resume:bool,   # Whether to go on with it
) -> tuple|None:   # Tensors and facts of the newest state; None: start at the beginning
    "Raise ValueError for a folder that holds a run which nobody asked to go on with"
    if out is None:
        if resume: raise ValueError('resume=True needs out=, the folder of the run to go on with')
        return None
    if not resume and states(out):
        raise ValueError(f'{out} holds a run already: go on with it (resume=True), give another out, '
                         'or remove the folder')
    remove_leftovers(out)
    return newest_state(out) if resume else None


def ready_teacher(
    teacher:nn.Module|None, # Any classifier of the same classes
    model:nn.Module,        # Model that will learn from it
    images:Tensor,          # One batch, to try it on
    device:torch.device,    # Device of the run
) -> nn.Module|None:        # Frozen copy on the device
    "Raise ValueError for a teacher that the model cannot learn from"
    if teacher is None: return None
    if type(timm_model(teacher)) in FAMILIES:
        try: check_images(teacher, images)
        except ValueError as e: raise ValueError(f'the teacher cannot take the images: {e}') from None
    teacher = frozen(teacher).to(device)
    with torch.no_grad(): classes = teacher(images[:1].to(device)).shape[-1]
    if classes != model.num_classes:
        raise ValueError(f'the teacher has {classes} classes and the model {model.num_classes}: they must be the same')
    return teacher


def reseed(
    loaders:Iterable, # Loaders whose own generators are seeded as well
    seed:int,         # Seed of everything random
    rank:int=0,       # Number of the process, so that no two draw the same noise
):
    "Seed torch, NumPy, Python and the loaders' own generators"
    random_seed(seed, rank)
    for loader in loaders:
        order = getattr(loader, 'generator', None)
        if order is not None: order.manual_seed(seed)


def start_from_data(
    model:nn.Module, # AdaptiveViT or timm ViT, on its device
    opening:list,    # First batches (images, targets)
    device:torch.device, # Device of the model
):
    "Let a method set from data what should not start blind, such as thresholds"
    if not is_adaptive(model): return
    images = [batch.to(device) for batch, _ in opening]
    with torch.no_grad(): model.eval().method.init_from_data(model.vit, images)


def build_run(
    model:nn.Module,  # AdaptiveViT or timm ViT, on the device
    loaders:tuple,    # Loaders for training, and for validation or None
    recipe:Recipe,    # Numbers of the run
    accelerator:Accelerator, # From `accelerator_on`
    seed:int=0,       # Seed of torch, NumPy, Python and the loaders' own generators
    **rest,           # Further fields of `Run`: teacher, out, every, identity, progress
) -> Run:             # Run at step 0
    "Seeds, then optimiser, schedule and everything that Accelerate prepares"
    mix = make_mixup(recipe, model.num_classes, model.method.name if is_adaptive(model) else '')
    ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
    reseed(loaders, seed, accelerator.process_index)
    call, optimizer, train, val = accelerator.prepare(model, make_optimizer(model, recipe), *loaders)
    scheduler = make_scheduler(optimizer, recipe, -(-len(train) // recipe.accumulate))
    return Run(recipe, accelerator, model, call, optimizer, scheduler, train, val, loaders, mix=mix, ema=ema, **rest)


def checked_parts(
    model:nn.Module, # AdaptiveViT or timm ViT
    loaders:tuple,   # Loaders for training, and for validation or None
    teacher:nn.Module|None, # Any classifier of the same classes
    device:torch.device,    # Device of the run
) -> tuple:          # First batches for training; frozen teacher or None
    "What the loaders and the teacher give, refused where it does not fit the model"
    train_loader, val_loader = loaders
    opening = peek_batches(train_loader, model, 'train_loader')
    check_length(train_loader)
    if val_loader is not None: peek_batches(val_loader, model, 'val_loader', 1, soft=False)
    return opening, ready_teacher(teacher, model, opening[0][0], device)


def prepare_run(
    model:nn.Module,  # AdaptiveViT or timm ViT; moved to the device
    loaders:tuple,    # Loaders for training, and for validation or None
    recipe:Recipe,    # Numbers of the run
    accelerator:Accelerator, # From `accelerator_on`
    teacher:nn.Module|None,  # Any classifier of the same classes
    state:tuple|None, # Tensors and facts from `found_state`; None: start at the beginning
    seed:int,         # Seed of everything random
    dtype:str,        # Precision by name
    out:Path|None,    # Folder of the run
    **rest,           # Further fields of `Run`: every, progress
) -> Run:             # Run at its first step, or where the state left it
    "Refuse with ValueError everything that can be refused, before a file is made, and then build the run"
    reseed(loaders, seed)
    opening, teacher = checked_parts(model, loaders, teacher, accelerator.device)
    identity = {}
    if out is not None:
        train_loader, val_loader = loaders
        identity = run_signature(model, recipe, seed=seed, dtype=dtype, batches=len(train_loader),
                                 processes=accelerator.num_processes, data=describe_data(train_loader),
                                 validation=describe_data(val_loader), teacher=teacher and fingerprint(teacher))
    if state is not None: check_signature(identity, state[1]['identity'], out)
    check_out(out)
    model.to(accelerator.device)
    if state is None: start_from_data(model, opening, accelerator.device)
    run = build_run(model, loaders, recipe, accelerator, seed, teacher=teacher, out=out, identity=identity, **rest)
    if state is not None: restore(run, *state)
    return run


def unwrap(
    run:Run, # Run that has finished or failed
):
    "Give the model back as it came, in evaluation mode: Accelerate leaves its own forward and a mark on it"
    for name in ('forward', '_original_forward', '_is_accelerate_prepared'): run.model.__dict__.pop(name, None)
    if run.ema is not None: run.model.load_state_dict(run.ema.module.state_dict())
    run.model.eval()
