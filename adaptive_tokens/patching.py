"""A class that is written over several cells of a page: its methods may follow where their lesson is."""
import sys

__all__ = ['method_of']


def method_of(
    cls:type, # Class that gets the method
):            # Decorator of a function with `self`, a property, or a class or static method
    "Make the function below a method of a class that stands in an earlier cell"
    def add(method):
        function = method.fget if isinstance(method, property) else getattr(method, '__func__', method)
        function.__qualname__ = f'{cls.__qualname__}.{function.__name__}'
        setattr(cls, function.__name__, method)
        return sys._getframe(1).f_globals.get(function.__name__)  # a name of the module stays what it was
    return add
