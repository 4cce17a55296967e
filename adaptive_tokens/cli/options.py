"""The options of all commands.

An option means the same in every command, so it is described once: what it is, its unit, an example. What may follow it
is told by one word, which the help shows as well: a COUNT is a number of things, so half an image or none is refused.
"""
import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass

from .. import __version__
from ..devices import DEVICES, DTYPES
from ..models.method import known_methods
from ..training.recipe import RECIPES

__all__ = ['BY_NAME', 'Command', 'FOLDERS', 'OPTIONS', 'Parser', 'READING', 'TIMING', 'Unset', 'as_argument', 'chosen',
           'command', 'from_one', 'from_zero', 'make_parser']


def from_one(
    text:str, # Word of the command line
) -> int:     # Its value
    "argparse type: a whole number from 1"
    if text.isdecimal() and int(text): return int(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1, as in 16')


def from_zero(
    text:str, # Word of the command line
) -> int:     # Its value
    "argparse type: a whole number from 0, below 2**32"
    if text.isdecimal() and int(text) < 2**32: return int(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 0, as in 1')


# An option is a pair: a word for what may follow it, or the choices, or '' for a switch; and its description.
KINDS = dict(COUNT=from_one, N=from_zero, SHARE=float, RATE=float)  # any other word stands for text

_METHODS = ', '.join(known_methods())

MODELS = dict(
    model=('DIR', 'checkpoint folder, dense or adaptive, e.g. runs/dense/best, or hf-hub:owner/name'),
    backbone=('NAME', "timm model, e.g. deit_small_patch16_224, or 'digits', the small one of the demo"),
    pretrained=('', "start from timm's pretrained weights of --backbone (from the hub, once)"),
    method=('NAME', f'how to spend less, one of: {_METHODS}; train takes dense, too; e.g. as-vit'),
    methods=('NAME', f'how to spend less, any of: {_METHODS}; as-vit:merge folds what it drops; e.g. as-vit tome'),
    budgets=('SHARE', 'shares of the dense multiply-adds to spend, from the largest, e.g. 0.9 0.8 0.65 0.5'),
    budget=('SHARE', 'share of the dense multiply-adds to spend, above 0, at most 1, e.g. 0.65'),
    init=('DIR', 'dense checkpoint to start from in place of --backbone, e.g. runs/dense/best'),
    teacher=('DIR', "dense checkpoint whose answers are imitated, e.g. runs/dense/best, or 'none'"),
    classes=('COUNT', 'outputs of the head, e.g. 10'),
)
IMAGES = dict(
    images=('ROOT', "'digits' (embedded), a folder with one subfolder per class, or a .tar, e.g. photos/"),
    data=('ROOT', "images to train on: 'digits' (embedded), a folder with subfolders, or a .tar, e.g. photos/"),
    val_data=('ROOT', 'images to validate on after each epoch, e.g. photos/val'),
    reader=('NAME', "timm's data set name for what is no folder or tar, e.g. wds/ or hfds/owner/set"),
    split=('NAME', 'subfolder or split to read, e.g. val'),
    val_split=('NAME', 'subfolder or split to validate on, e.g. val'),
    class_map=('FILE', 'text file with one class folder per line, in the order of the classes, e.g. classes.txt'),
    n=('COUNT', 'images to use, e.g. 512'),
    val_n=('COUNT', 'images to validate on, e.g. 1000'),
    workers=('N', 'processes that read real images, e.g. 8; 0 reads in the main one'),
    unreadable=(('raise', 'skip'),
                'what to do with an image that cannot be decoded; e.g. skip names, counts and leaves it out'),
)
TRAINING = dict(
    recipe=('RECIPE', f'published numbers by name, or a yaml file, e.g. mine.yaml; there are {", ".join(RECIPES)}'),
    epochs=('COUNT', 'passes over the training images, e.g. 30'),
    lr=('RATE', 'highest learning rate of AdamW, per step, e.g. 1e-4 to fine-tune'),
    weight_decay=('RATE', 'weight decay of the matrices, relative to the learning rate, e.g. 0.05'),
    warmup=('SHARE', 'share of the steps in which the learning rate climbs, e.g. 0.05'),
    label_smoothing=('SHARE', 'share of the target spread over all classes, e.g. 0.1'),
    floor=('SHARE', 'lowest learning rate, at both ends of the schedule, as a share of the highest, e.g. 0.1'),
    opt=('NAME', "timm's name of the optimiser, e.g. sgd"),
    layer_decay=('SHARE', 'factor on the learning rate from each block to the one before it, e.g. 0.75'),
    clip=('RATE', 'largest gradient norm, e.g. 5; 0 lets any pass'),
    accumulate=('COUNT', 'batches whose gradients are added up for one step, e.g. 4'),
    ema=('SHARE', 'decay of the moving average of the weights, which is what is kept, e.g. 0.999; 0 keeps none'),
    mixup=('RATE', 'alpha of mixup, e.g. 0.8; 0 mixes nothing'),
    cutmix=('RATE', 'alpha of cutmix, e.g. 1; 0 cuts nothing'),
    augment=('NAME', "timm's name of an automatic augmentation of real images, e.g. rand-m9-mstd0.5-inc1"),
    erase=('SHARE', 'probability that a part of a real image is erased, e.g. 0.25'),
    drop_path=('SHARE', 'highest rate of stochastic depth, for --backbone, e.g. 0.1'),
    resume=('', 'go on with the run in --out, if there is one: it ends as if it had never stopped'),
    every=('N', 'steps between the states to go on from, e.g. 500; 0: one after each epoch'),
    tracker=('NAME', 'tracker that is told of every epoch, by the name Accelerate has for it, e.g. tensorboard'),
)
RUNNING = dict(
    compiled=('', 'use torch.compile; bench adds a row for the dense baseline compiled'),
    native=('', 'on a CPU, loop over the images of a packed batch in C++, which is compiled once '
                '(g++ or clang++, ninja)'),
    fall_back=('', 'let adaptive models take the masked form at batch sizes where it is faster than packing; '
                   'the table says so'),
    sweep=('', 'also time batches of 1, 2, 4, ... images, up to --n or to what fits into memory'),
    allow_noise=('', 'time adaptive models on images that look like noise, too'),
    batch_size=('COUNT', 'images per step or timed call, e.g. 64'),
    repeats=('COUNT', 'timed passes over the images, e.g. 20; one is too few for a spread'),
    threads=('COUNT', 'CPU threads while measuring, e.g. 1'),
    out=('PATH', 'folder for the results, e.g. out/; of explore the page itself, e.g. page.html'),
    seed=('N', 'of everything random, e.g. 1'),
    device=(DEVICES, 'where to compute; auto takes the fastest that is there, e.g. cpu'),
    dtype=(tuple(DTYPES),
           'precision of the matrix products, in bench and demo of weights and images, too; e.g. bfloat16'),
    debug=('', 'show the traceback of an error'),
)
OPTIONS = MODELS | IMAGES | TRAINING | RUNNING
EVERYWHERE = dict(device='auto', dtype='float32', seed=0, debug=False)  # options of every command, and their defaults
READING = 'reader', 'class_map', 'workers', 'seed'                      # options that say how images are read
TIMING = 'batch_size', 'repeats', 'threads', 'device', 'dtype'          # options that say how models are timed


class Unset(str):
    "In place of a default value: words for what happens without the option"


FOLDERS, BY_NAME = Unset('a folder or a tar'), Unset('classes in the order of their names')


@dataclass
class Command:
    "A command of the command line, called with its parsed options"
    name:str          # Word by which it is called
    run:Callable      # Function of the parsed options
    description:str   # What it does, and with what result
    examples:tuple    # Complete command lines
    defaults:dict     # Default value of each of its options, or an `Unset`
    many:tuple        # Options that take several values

    def __call__(self, args): return self.run(args)


def command(
    description:str, # What the command does, and with what result
    *examples:str,   # Complete command lines
    many:tuple=(),   # Options that take several values
    **defaults,      # Options of the command, each with a default value or an `Unset`
) -> Callable:       # Decorator of a function of the parsed options
    "Make a function a command of its own name"
    def decorate(run): return Command(run.__name__, run, description, examples, defaults | EVERYWHERE, many)
    return decorate


def as_argument(
    name:str,     # Name of an option in OPTIONS
    default,      # Default value, or an `Unset`
    several:bool, # Whether it takes several values
) -> dict:        # Keyword arguments for `argparse.ArgumentParser.add_argument`
    "An option as argparse wants it; its help ends with what happens without it"
    kind, text = OPTIONS[name]
    without = 'no' if default is False else default
    argument = dict(help=f'{text} (default: {without})', default=None if isinstance(default, Unset) else default)
    if not kind: return dict(argument, action='store_true')
    if not isinstance(kind, str): return dict(argument, choices=kind)
    argument |= dict(metavar=kind, type=KINDS.get(kind, str))
    return dict(argument, nargs='+') if several else argument


class Parser(argparse.ArgumentParser):
    "argparse that says in one line what is wrong, and where help is"

    def error(self, message):
        "End with code 2"
        self.exit(2, f'adaptive-tokens: error: {message}; see {self.prog} --help\n')


def make_parser(
    commands:dict[str, Command], # Commands by name, in the order of the help
) -> Parser:                     # Parser of all commands
    "The command line as argparse wants it"
    parser = Parser(prog='adaptive-tokens', allow_abbrev=False,
                    description='Vision Transformers that spend compute only where an image needs it.',
                    epilog='adaptive-tokens COMMAND --help says more.')
    parser.add_argument('--version', action='version', version=__version__)
    words = parser.add_subparsers(metavar='COMMAND', dest='command', required=True)
    for name, one in commands.items():
        first_sentence = re.split('[:.]', one.description)[0]
        sub = words.add_parser(name, help=first_sentence, description=one.description, allow_abbrev=False,
                               epilog='\n  '.join(['examples:', *one.examples]),
                               formatter_class=argparse.RawDescriptionHelpFormatter)
        for option, default in one.defaults.items():
            flag = '--' + option.replace('_', '-')
            sub.add_argument(flag, **as_argument(option, default, option in one.many))
    return parser


def chosen(
    args:argparse.Namespace, # Parsed options
    *names:str,              # Names of options
) -> dict:                   # Their values by name
    "Some of the options"
    return {name: getattr(args, name) for name in names}
