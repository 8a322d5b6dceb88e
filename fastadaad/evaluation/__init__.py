"""Natural and robust accuracy of a network, and their tables and plots.

Names are imported at their first use, so that `fastadaad.evaluation.attack_names` loads without torch. The names and
their types are in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
