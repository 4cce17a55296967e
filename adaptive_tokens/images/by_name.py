"""Where do backbones and images come from, when all that is given is a word?"""
import warnings
from collections.abc import Iterable
from itertools import islice

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..backbones.backbone import backbone_of, check_backbone, timm_model
from ..errors import unknown_name
from .digits import ClutteredDigits, digits_loader, digits_vit
from .real import TRAIN_SPLITS, image_loader

__all__ = ['check_reading', 'class_folders', 'classes_in', 'find_images', 'gather', 'make_backbone',
           'with_fitting_labels']


def make_backbone(
    name:str,              # Name of a timm model; 'digits' for the small backbone of Cluttered Digits
    pretrained:bool=False, # Whether to load timm's pretrained weights
    **changes,             # Further arguments of `timm.create_model`
) -> nn.Module:            # timm ViT, in evaluation mode
    "Raises ValueError with the nearest names for one that does not exist, UnsupportedBackbone for one not understood"
    if name == 'digits' and pretrained: raise ValueError("'digits' has no pretrained weights: name a timm model")
    if '/' not in name and not timm.is_model(name) and name != 'digits':
        raise unknown_name('timm model', name, ['digits', *timm.list_models()])
    try:
        if name == 'digits': vit = digits_vit(**changes)
        else: vit = timm.create_model(name, pretrained=pretrained, **changes)
    except OSError as e: raise FileNotFoundError(f'weights or config of {name!r} are out of reach: {e}') from None
    except RuntimeError as e: raise ValueError(f'timm cannot make {name!r}: {e}') from None
    check_backbone(vit)
    return vit.eval()


def find_images(
    root:str,                # Name of the images: 'digits' (embedded), a folder, a tar file, or what the reader takes
    vit:nn.Module,           # Backbone that takes the images, at the size it was made for
    split:str,               # Subfolder or split to read
    n:int|None=None,         # Number of images; None: all
    *,
    skip:int=0,              # Number of images of the same draw that are left to another use
    training:bool=False,     # Whether to take them in random order and, real ones, with timm's augmentation
    batch_size:int=64,       # Images per batch
    reader:str|None=None,    # Data set name of timm for what is neither a folder nor a tar, such as 'hfds/owner/set'
    class_map:str|None=None, # Text file with one class folder per line, in the order of the classes
    unreadable:str='raise',  # Treatment of an image that cannot be decoded, 'raise' or 'skip'
    workers:int=0,           # Processes that read real images; 0 reads in the main one
    seed:int=0,              # Seed of the draw and of the order
    **changes,               # Changes of the transform of real images, as for `image_loader`
) -> DataLoader:             # Batches (images, labels)
    "Images by name, as this backbone wants them; raises ValueError or FileNotFoundError for what cannot be read"
    if root == 'digits':
        backbone = backbone_of(vit)
        size = dict(image_size=backbone.image_size[0], patch_size=backbone.patch_size[0])
        half = 'train' if split in TRAIN_SPLITS else 'test'
        return digits_loader(half, batch_size, training, seed=seed, size=n, **size)
    try:
        loader = image_loader(root, vit, batch_size, reader or '', split, class_map, training, unreadable, workers,
                              seed, **changes)
    except (AssertionError, ImportError, RuntimeError) as e:  # timm's readers check with whatever is at hand
        said = f'--reader {reader!r}, --class-map {class_map!r}'
        raise ValueError(f'timm cannot read {root!r} ({said}): {e!r}') from None
    return _sample(loader, n, seed, skip, training) if n else loader


def _sample(loader, n, seed, skip, training):
    "A random sample, since a folder is sorted by class and its beginning shows one only; of a stream, its beginning"
    data = loader.dataset
    if isinstance(data, IterableDataset): drawn = list(islice(data, skip, skip + n))
    else:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        drawn = Subset(data, order[skip:skip + n])
    return DataLoader(drawn, loader.batch_size, training, num_workers=loader.num_workers, generator=loader.generator)


def check_reading(
    models:dict[str, nn.Module], # Models by name, dense or adaptive
):
    "Raise ValueError, naming two models, unless all of them want photographs normalised alike"
    wants = {name: resolve_model_data_config(timm_model(model)) for name, model in models.items()}
    first, its = next(iter(wants.items()))
    for name, want in wants.items():
        for key in ('mean', 'std'):
            if list(want[key]) == list(its[key]): continue
            raise ValueError(f'{first} wants images of {key} {tuple(its[key])}, {name} of {tuple(want[key])}: '
                             'look at them one by one')


def _drawn_from(loader):
    "The data set of a loader, or the one that its sample was drawn from"
    return getattr(loader.dataset, 'dataset', loader.dataset)


def class_folders(
    loader:DataLoader, # Loader from `find_images`
) -> dict[str, int]:   # Class numbers by name of the folder; empty where the reader does not tell
    "Which class number each class folder of real images has"
    data = _drawn_from(loader)
    reader = getattr(getattr(data, 'data', data), 'reader', None)
    in_folder, in_tar = (getattr(reader, name, None) for name in ('class_to_idx', 'class_name_to_idx'))
    return in_folder or in_tar or {}


def classes_in(
    loader:DataLoader, # Loader from `find_images`
) -> int|None:         # Number of classes; None where the reader does not tell
    "Number of classes that the images come in"
    if isinstance(_drawn_from(loader), ClutteredDigits): return 10
    numbers = class_folders(loader).values()
    return max(numbers) + 1 if numbers else None


def with_fitting_labels(
    loader:DataLoader, # Loader from `find_images`
    classes:int,       # Number of classes of the models
) -> tuple[Tensor, Tensor|None]: # Images [n, C, height, width], and labels [n] where they can be trusted
    "Images and labels in memory; warns and leaves the labels out if the images come in another number of classes"
    images, labels = gather(loader)
    if labels is None or classes_in(loader) in (None, classes): return images, labels
    warnings.warn(f'images come in {classes_in(loader)} classes and the model has {classes}: no accuracy is measured '
                  '(--class-map names the class of each folder)', stacklevel=2)
    return images, None


def gather(
    images:Tensor|Dataset|Iterable, # Images [n, C, height, width]; or a data set or loader of images or (image, label)
    labels:Iterable[int]|None=None, # Class of each image; None: those of the data set, if it has them
) -> tuple[Tensor, Tensor|None]:    # Images [n, C, height, width] and labels [n]
    "Everything in memory; a label of -1, as data sets give where they have none, counts as no label"
    if isinstance(images, (str, bytes)) or not isinstance(images, (Tensor, Dataset, Iterable)):
        raise ValueError(f'images are a {type(images).__name__}; give a tensor [n, C, height, width], a data set or '
                         'a loader')
    if isinstance(images, Tensor): images = [images]
    loader = DataLoader(images, batch_size=64) if isinstance(images, Dataset) else images
    batches = [batch if isinstance(batch, (tuple, list)) else (batch, None) for batch in loader]
    if not sum(len(batch[0]) for batch in batches):
        raise ValueError('there are no images to measure on: give at least one')
    if labels is None and all(batch[1] is not None for batch in batches):
        labels = torch.cat([torch.as_tensor(batch[1]) for batch in batches])
    if labels is not None:
        labels = torch.as_tensor(labels)
        if (labels == -1).all(): labels = None
    return torch.cat([batch[0] for batch in batches]), labels
