"The methods: one paper, one file, and one line here."
from . import adavit, asvit, avit, dynamicvit, evit, fixed, tome
