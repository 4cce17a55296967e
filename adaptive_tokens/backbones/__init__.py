"The backbones: one family, one file, and one line here."
from . import timm_vit
