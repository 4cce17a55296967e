"""A class that is written over several cells of a page: its methods may follow where their lesson is."""
import sys

__all__ = ['method_of']


def method_of(
    cls:type, # Class that gets the method
):            # Decorator of a function whose first parameter is `self`, or of a property
    "Make the function below a method of a class that stands in an earlier cell"
    def add(method):
        function = method.fget if isinstance(method, property) else method
        function.__qualname__ = f'{cls.__qualname__}.{function.__name__}'
        setattr(cls, function.__name__, method)
        return sys._getframe(1).f_globals.get(function.__name__)  # the module's own name, if there is one, stays what it was
    return add
