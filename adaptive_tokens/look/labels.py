"""Where does the name of a point go, so that it covers nothing?"""
from matplotlib.text import Text
from matplotlib.transforms import Bbox

__all__ = ['name_point', 'spread_names']

# Places of a name beside its point, in typographic points; the first is where it starts.
PLACES = [(x, y) for y in (8, -14, 20, -26, 32, -38) for x in (6, -6)] + [(9, -3), (-9, -3)]
PLACES += [(x, y) for y in (44, -50, 56, -62) for x in (6, -6)]  # where all of those are taken
NEAR = 14    # a name further up or down than this gets a line to its point
MARKER = 10  # pixels along the box that stands for a marker


def name_point(
    ax,         # A matplotlib Axes
    text:str,   # Name to write
    point:tuple[float, float], # Point it belongs to, in the units of the axes
    colour:str, # Colour of the line from the name to its point
):
    "Write a name beside its point, in the first of PLACES; `spread_names` may move it"
    line = dict(arrowstyle='-', color=colour, linewidth=.8, shrinkA=0, shrinkB=4)
    ax.annotate(text, point, xytext=PLACES[0], textcoords='offset points', fontsize=9, arrowprops=line)


def spread_names(
    fig, # A matplotlib Figure, each axes with names of points from `name_point`
):
    "Move names to where they cover no other name, no marker, no legend and no edge, and no line if possible"
    fig.draw_without_rendering()
    for ax in fig.axes:
        inside, taken = ax.get_window_extent(), _markers(ax)
        if ax.get_legend(): taken.append(ax.get_legend().get_window_extent())
        lines = [Bbox.from_bounds(x, y, 1, 1) for x, y in _points_of_lines(ax)]
        for name in ax.texts: taken.append(_best_place(name, taken, lines, inside))


def _markers(ax):
    "A box around each point that has a name"
    at = [ax.transData.transform(name.xy) for name in ax.texts]
    return [Bbox.from_bounds(x - MARKER / 2, y - MARKER / 2, MARKER, MARKER) for x, y in at]


def _best_place(name, taken, lines, inside):
    "Put a name where it covers least, the earlier of PLACES where that ties; returns the box of the name"
    def cost(place): return _covered(_put_name(name, place), taken, lines, inside)
    return _put_name(name, min(PLACES, key=cost))


def _put_name(name, place):
    "Place a name beside its point, with a line to it from further away; returns the box of the name"
    name.set(position=place, ha='left' if place[0] > 0 else 'right')
    name.arrow_patch.set_visible(abs(place[1]) > NEAR)
    return Text.get_window_extent(name)  # of the text alone, without the line


def _covered(box, taken, lines, inside):
    "How many boxes and edges a box covers, and how much of the lines; the first counts more"
    over_the_edge = Bbox.union([box, inside]).bounds != inside.bounds
    return box.count_overlaps(taken) + over_the_edge, box.count_overlaps(lines)


def _points_of_lines(ax):
    "Points (x, y) in pixels that stand for the lines and error bars of axes that were drawn"
    drawn = [line for line in ax.lines if line.get_linestyle() != 'None']
    paths = [line.get_transform().transform_path(line.get_path()) for line in drawn]
    paths += [bars.get_transform().transform_path(path) for bars in ax.collections for path in bars.get_paths()]
    return [point for path in paths for point in path.interpolated(20).vertices]
