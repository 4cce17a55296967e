"A class that is written over several cells, and names of the module that stay what they were."
from adaptive_tokens.patching import method_of


class Counter:
    def __init__(self): self.n = 3


def halve(n): return n / 2


kept = halve


@method_of(Counter)
def halve(self): return kept(self.n)  # noqa: F811


@method_of(Counter)
@property
def double(self): return 2 * self.n


@method_of(Counter)
@staticmethod
def zero(): return 0


@method_of(Counter)
@classmethod
def made(cls): return cls()


class Special(Counter):
    @property
    def double(self): return -super().double


def test_functions_properties_static_and_class_methods_become_methods():
    counter = Counter()
    assert counter.halve() == 1.5 and counter.double == 6 and Counter.zero() == counter.zero() == 0
    assert type(Counter.made()) is Counter and type(Special.made()) is Special and Special().double == -6


def test_a_function_of_the_module_with_that_name_stays():
    assert halve is kept and halve(8) == 4
    assert double is None and zero is None and made is None  # there was nothing else of that name


def test_a_method_is_called_by_its_class():
    assert Counter.halve.__qualname__ == 'Counter.halve' and Counter.made.__func__.__qualname__ == 'Counter.made'
    assert Counter.double.fget.__qualname__ == 'Counter.double'
