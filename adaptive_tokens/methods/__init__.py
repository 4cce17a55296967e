"The methods: one paper, one file, and one line here."
from . import avit, adavit, asvit, fixed, evit, tome, dynamicvit
