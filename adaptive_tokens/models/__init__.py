"The models: whichever part is imported, an AdaptiveViT can be saved and loaded."
from . import checkpoint
