"Vision Transformers that spend compute only where an image needs it."
from importlib import import_module

__version__ = "0.1.0"

# A name is imported when it is first used, so that `import adaptive_tokens` waits for nothing that is not needed.
_homes = {'tokens': ['MaskedTokens', 'PackedTokens'], 'cost': ['macs']}
_home = {name: module for module, names in _homes.items() for name in names}
__all__ = list(_home)


def __getattr__(name):
    if name not in _home: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f'.{_home[name]}', __name__), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
