"Vision Transformers that spend compute only where an image needs it."
from adaptive_tokens.bench import Benchmark, benchmark
from adaptive_tokens.cost import macs
from adaptive_tokens.data import ClutteredDigits, digits_loader, image_loader
from adaptive_tokens.explorer import Explorer, explore
from adaptive_tokens.gating import AdaViT
from adaptive_tokens.halting import AViT
from adaptive_tokens.model import AdaptiveViT, Method, Trace, adapt, calibrate, create_model
from adaptive_tokens.pruning import ASViT
from adaptive_tokens.baselines import DynamicViT, EViT, FixedRate, LowestK, RandomK, ToMe
from adaptive_tokens.tokens import MaskedTokens, PackedTokens
from adaptive_tokens.train import evaluate, fit

__version__ = "0.1.0"
__all__ = ['ASViT', 'AViT', 'AdaViT', 'AdaptiveViT', 'Benchmark', 'ClutteredDigits', 'DynamicViT', 'EViT', 'Explorer',
           'FixedRate', 'LowestK', 'MaskedTokens', 'Method', 'PackedTokens', 'RandomK', 'ToMe', 'Trace', 'adapt',
           'benchmark', 'calibrate', 'create_model', 'digits_loader', 'evaluate', 'explore', 'fit', 'image_loader',
           'macs']
