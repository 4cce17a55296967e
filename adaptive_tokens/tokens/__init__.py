"The tables: one engine, one file, and one line here."
from . import masked, packed
