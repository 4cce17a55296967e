"Vision Transformers that spend compute only where an image needs it."
from importlib import import_module

__version__ = "0.1.0"

# The face of the package: each public name is imported when it is first used.
_HOMES = {
    'models.model': 'AdaptiveViT adapt calibrate create_model',
    'models.checkpoint': 'shipped',
    'models.method': 'Method',
    'models.trace': 'Trace',
    'models.cost': 'macs',
    'backbones.compile': 'compile_parts',
    'tokens.masked': 'MaskedTokens',
    'tokens.packed': 'PackedTokens',
    'tokens.native': 'compile_loops',
    'methods.avit': 'AViT',
    'methods.adavit': 'AdaViT',
    'methods.asvit': 'ASViT',
    'methods.fixed': 'FixedRate LowestK RandomK',
    'methods.evit': 'EViT',
    'methods.tome': 'ToMe',
    'methods.dynamicvit': 'DynamicViT',
    'images.digits': 'ClutteredDigits digits_loader',
    'images.real': 'image_loader',
    'measure.benchmark': 'benchmark',
    'measure.result': 'Benchmark',
    'measure.execution': 'choose_execution',
    'measure.sweep': 'sweep plot_sweep',
    'measure.profile': 'where_time_goes',
    'look.explorer': 'Explorer explore',
    'training.recipe': 'Recipe',
    'training.evaluate': 'evaluate',
    'training.fit': 'fit',
    'training.log': 'plot_log',
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value = getattr(import_module(f'{__name__}.{_HOME_OF[name]}'), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
