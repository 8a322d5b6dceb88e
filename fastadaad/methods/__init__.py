"""Training methods: a table of rows, the inner objectives and outer losses that they name, and their options.

The table can be read without torch; objectives and losses are imported when they are used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
