"""fastadaad: robust students from robust teachers, by adversarial distillation at speed.

Names are imported when they are used, so that `import fastadaad` and the command line's help do not import torch.
"""

import lazy_loader

from fastadaad.runtime.version import version

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("fastadaad")
