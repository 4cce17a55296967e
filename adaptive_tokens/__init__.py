"Vision Transformers that spend compute only where an image needs it."

__version__ = "0.1.0"
