"Vision Transformers that spend compute only where an image needs it."
import warnings

from adaptive_tokens.bench import Benchmark, benchmark, choose_execution, plot_sweep, sweep, where_time_goes
from adaptive_tokens.blocks import compile_parts
from adaptive_tokens.cost import macs
from adaptive_tokens.data import ClutteredDigits, digits_loader, image_loader
from adaptive_tokens.explorer import Explorer, explore
from adaptive_tokens.gating import AdaViT
from adaptive_tokens.halting import AViT
from adaptive_tokens.model import AdaptiveViT, Method, Trace, adapt, calibrate, create_model
from adaptive_tokens.native import compile_loops
from adaptive_tokens.pruning import ASViT
from adaptive_tokens.baselines import DynamicViT, EViT, FixedRate, LowestK, RandomK, ToMe
from adaptive_tokens.recipes import Recipe
from adaptive_tokens.tokens import MaskedTokens, PackedTokens
from adaptive_tokens.train import evaluate, fit, plot_log

# `python -m adaptive_tokens.train` runs a module that is imported here already: harmless, it only calls the command line
warnings.filterwarnings('ignore', "'adaptive_tokens.train' found in sys.modules", RuntimeWarning)

__version__ = "0.1.0"
__all__ = ['ASViT', 'AViT', 'AdaViT', 'AdaptiveViT', 'Benchmark', 'ClutteredDigits', 'DynamicViT', 'EViT', 'Explorer',
           'FixedRate', 'LowestK', 'MaskedTokens', 'Method', 'PackedTokens', 'RandomK', 'Recipe', 'ToMe', 'Trace',
           'adapt', 'benchmark', 'calibrate', 'choose_execution', 'compile_loops', 'compile_parts', 'create_model', 'digits_loader', 'evaluate',
           'explore', 'fit', 'image_loader', 'macs', 'plot_log', 'plot_sweep', 'sweep', 'where_time_goes']
