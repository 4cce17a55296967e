"""What do the figures share: panels, titles, grids of numbers?"""
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm

from .style import plain_text

__all__ = ['annotated_grid', 'new_figure', 'panels', 'show_images', 'ticks_up_to', 'whole_steps']

LONGEST_ROW = 6  # panels in a row


def new_figure(
    rows:int,            # Number of rows of panels
    columns:int,         # Number of columns of panels
    size:tuple[float, float], # Width and height in inches
    title:str|None=None, # Title above all panels, plain text
    **options,           # More arguments of `matplotlib.pyplot.subplots`
):                       # A matplotlib Figure and its Axes [rows, columns]
    "An empty figure that is closed already; an open one would be shown twice by a notebook"
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout='constrained', **options)
    plt.close(fig)
    if title is not None: fig.suptitle(plain_text(title), fontsize=10)
    return fig, axes


def panels(
    n:int,               # Number of panels
    aspect:float=1.,     # Height of a panel over its width
    title:str|None=None, # Title above all panels, plain text
    width:float=1.75,    # Width of a panel in inches
):                       # A matplotlib Figure and its n Axes
    "Panels in rows of six, without spare axes"
    columns, rows = min(n, LONGEST_ROW), -(-n // LONGEST_ROW)
    size = width * max(columns, 2), rows * (width * aspect + .55)
    fig, axes = new_figure(rows, columns, size, title)
    for ax in axes.flat[n:]: ax.remove()
    return fig, axes.flat[:n]


def show_images(
    images,           # Pictures [n, height, width] or [n, height, width, 3]
    titles=None,      # Titles of the first pictures, plain text
    width:float=1.4,  # Width of a picture in inches
    columns:int|None=None, # Number of pictures in a row; None: all of them
    **options,        # More arguments of `imshow`: vmin, vmax, cmap, ...
):                    # A matplotlib Figure
    "Pictures side by side, without axes; grey where they have no colours"
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    fig, axes = new_figure(rows, columns, (width * columns, (width + .3 * (titles is not None)) * rows))
    for ax, image in zip(axes.flat, images): ax.imshow(image, **{'cmap': 'gray', **options})
    for ax, title in zip(axes.flat, () if titles is None else titles): ax.set_title(plain_text(title), fontsize=9)
    for ax in axes.flat: ax.set(xticks=[], yticks=[])
    return fig


def whole_steps(
    most:int, # Largest number
):            # A matplotlib norm
    "A step of colour for each whole number from 0 to `most`"
    return BoundaryNorm(np.arange(-.5, most + 1), 256)


def ticks_up_to(
    most:float, # Largest number
    n:int,      # Number of ticks, or fewer where they would fall together
) -> np.ndarray: # Whole numbers
    "Ticks of a colour bar, evenly spaced from 0"
    return np.unique(np.linspace(0, most, n).round())


def annotated_grid(
    ax,                # A matplotlib Axes
    values:np.ndarray, # Whole numbers [rows, columns]; nan where a cell stays empty
    norm,              # Norm of matplotlib, from the numbers to 256 colours
):                     # The image drawn, for a colour bar
    "A grid of whole numbers, each written in its cell, white on dark colours and black on bright ones"
    drawn = ax.imshow(values, cmap='cividis', norm=norm)
    size = max(4, min(9, 100 / max(values.shape)))
    for (row, column), v in np.ndenumerate(values):
        if np.isnan(v): continue
        colour = 'white' if norm(v) < 128 else 'black'
        ax.text(column, row, int(v), ha='center', va='center', fontsize=size, color=colour)
    ax.set(xticks=[], yticks=[])
    return drawn
