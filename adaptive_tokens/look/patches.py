"""How is the image drawn, patch by patch, with a line around those that are kept?"""
from collections.abc import Iterable

import numpy as np
import torch
from matplotlib.collections import LineCollection
from torch import Tensor

__all__ = ['draw_kept', 'edges', 'fade', 'outline', 'patch_grid', 'picture']

LINE = ('white', 3.2), ('#B34700', 1.6)  # colours and widths: dark orange on white shows on light and dark


def picture(
    image:Tensor, # Image as the model sees it, of 1 or 3 channels [C, height, width]
    mean:Iterable[float]|None=None, # Mean of each channel, as for the model's transform; None: full range
    std:Iterable[float]|None=None,  # Standard deviation of each channel
) -> np.ndarray:  # Pixels from 0 to 1 [height, width, 3]
    "An image to look at; raises ValueError for a shape that is not one image"
    if image.ndim != 3 or len(image) not in (1, 3):
        raise ValueError(f'image has shape {list(image.shape)}; one image is [1 or 3, height, width]: index the batch')
    image = image.detach().float().cpu()
    if mean is None: image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-8)
    else: image = image * torch.as_tensor(std)[:, None, None] + torch.as_tensor(mean)[:, None, None]
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def patch_grid(
    size:tuple[int, int], # Height and width of the image in pixels
    N:int,                # Number of tokens of a full image, prefix included
    patch_size:int|tuple[int, int]|None=None, # Pixels of a patch, height and width; None: the smallest square that fits
) -> tuple[int, int]:     # Rows and columns of patches
    "Rows and columns of patches; raises ValueError where they do not fit the image or the trace"
    H, W = size
    if patch_size is None: patch_size = _smallest_patch(H, W, N)
    h, w = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    tiles = h > 0 and w > 0 and H % h == W % w == 0
    if not tiles or (H // h) * (W // w) > N:
        raise ValueError(f'patches of {h}x{w} do not fit an image of {H}x{W} with {N} tokens: '
                         'give the patch_size of the model that made the trace')
    return H // h, W // w


def _smallest_patch(H, W, N):
    "Pixels along the smallest square patch that cuts an image into at most N tokens"
    for side in range(1, min(H, W) + 1):
        if H % side == W % side == 0 and (H // side) * (W // side) <= N: return side
    raise ValueError(f'no square patch cuts {H}x{W} pixels into at most {N} tokens: give patch_size')


def fade(
    pixels:np.ndarray, # Pixels from 0 to 1 [height, width, 3]
    on:np.ndarray,     # Kept patches, bool [rows, columns]
) -> np.ndarray:       # Pixels, three quarters of the way to white where a patch is not kept [height, width, 3]
    "Fade the patches that are not kept"
    h, w = len(pixels) // len(on), pixels.shape[1] // on.shape[1]
    kept = np.kron(on, np.ones((h, w)))[..., None] > 0
    return np.where(kept, pixels, .25 * pixels + .75)


def edges(
    on:np.ndarray, # Kept patches, bool [rows, columns]
    h:float,       # Height of a patch
    w:float,       # Width of a patch
) -> list:         # Segments ((x, y), (x, y))
    "Edges between kept patches and what is not kept, the border of the image included"
    padded = np.pad(on, 1)
    rows, columns = np.nonzero(padded[1:] ^ padded[:-1])
    level = [((c*w - w, r*h), (c*w, r*h)) for r, c in zip(rows, columns)]
    rows, columns = np.nonzero(padded[:, 1:] ^ padded[:, :-1])
    upright = [((c*w, r*h - h), (c*w, r*h)) for r, c in zip(rows, columns)]
    return level + upright


def draw_kept(
    ax,                # A matplotlib Axes
    pixels:np.ndarray, # Pixels from 0 to 1 [height, width, 3]
    on:np.ndarray,     # Kept patches, bool [rows, columns]
):
    "An image with its dropped patches faded and the kept ones outlined"
    H, W = pixels.shape[:2]
    ax.imshow(fade(pixels, on), extent=(0, W, H, 0), interpolation='nearest')
    outline(ax, edges(on, H / on.shape[0], W / on.shape[1]))
    ax.set(xticks=[], yticks=[])


def outline(
    ax,            # A matplotlib Axes
    segments:list, # Segments ((x, y), (x, y))
):
    "Two-coloured lines that show on light and dark"
    for colour, width in LINE:
        lines = LineCollection(segments, colors=colour, linewidths=width, capstyle='projecting', clip_on=False)
        ax.add_collection(lines)
