"""How do activity, scores and pictures fit into the text of a page?"""
import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ['bits_as_text', 'bytes_as_text', 'data_url', 'levels_of', 'quantised', 'text_as_bits']

NONE = 255   # level of a score that was not given
LARGEST_PNG = 96  # longest side in pixels of a picture that is kept without loss


def bytes_as_text(
    values:np.ndarray, # Numbers, uint8, any shape
) -> str:              # Text in base64
    "Bytes as text"
    return base64.b64encode(values.tobytes()).decode()


def bits_as_text(
    on:Tensor, # Booleans, any shape
) -> str:      # Text in base64; the first boolean is the highest bit of the first byte
    "Booleans as text, eight to a byte"
    return bytes_as_text(np.packbits(on.cpu().numpy()))


def text_as_bits(
    text:str,             # Text from `bits_as_text`
    shape:tuple[int, ...],# Shape of the booleans
) -> np.ndarray:          # Zeros and ones of this shape, uint8
    "The way back from `bits_as_text`"
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
    return bits[:np.prod(shape)].reshape(shape)


def levels_of(
    v:np.ndarray,    # Scores, any shape
    line:float|None, # Threshold that the scores are compared with, or None
    low:float,       # Score of level 0
    high:float,      # Score of level 254
) -> np.ndarray:     # Whole numbers from 0 to 254, the same shape
    "Scores in 254 steps, on the side of the threshold where they were"
    def exact(value): return (value - low) / (high - low) * 254
    level = exact(v).round()
    if line is None: return level
    above = np.maximum(level, np.floor(exact(line)) + 1)
    below = np.minimum(level, np.ceil(exact(line)) - 1)
    return np.where(v >= line, above, below).clip(0, 254)


def quantised(
    values:Tensor, # Scores, nan where there is none [B, L, N]
    lines:list,    # Threshold of each block, or None [L]
) -> dict:         # Lists low and high [L], and levels as base64 [B, L, N]
    "Scores in a byte each; those of a block share a range that holds its threshold"
    scores, spans = values.cpu().double().numpy(), []
    levels = np.full(scores.shape, NONE, np.uint8)
    for l, line in enumerate(lines):
        v = scores[:, l]
        spans.append(_span(v[~np.isnan(v)], line))
        levels[:, l] = np.where(np.isnan(v), NONE, levels_of(np.nan_to_num(v), line, *spans[-1]))
    low, high = zip(*spans)
    return dict(low=low, high=high, levels=bytes_as_text(levels))


def _span(scores, line):
    "Lowest and highest of scores and threshold; a range of one where there is nothing between them"
    ends = [*scores, *([] if line is None else [line])] or [0.]
    low, high = min(ends), max(ends)
    return float(low), float(high if high > low else low + 1)


def data_url(
    pixels:np.ndarray, # Picture from 0 to 1 [height, width, 3]
    side:int=336,      # Longest side of what is kept, in pixels
) -> str:              # A data URL
    "A picture as part of a page: PNG if it is small, else JPEG"
    image, file = Image.fromarray((pixels * 255).round().astype(np.uint8)), io.BytesIO()
    kind = 'png' if max(image.size) <= LARGEST_PNG else 'jpeg'
    image.thumbnail((side, side))
    image.save(file, kind, quality=85)
    return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
