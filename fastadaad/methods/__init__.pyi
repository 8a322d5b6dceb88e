from .objectives import InnerObjective as InnerObjective
from .options import MethodOptions as MethodOptions
from .outer_batch import OuterBatch as OuterBatch
from .table import ADDITIONS as ADDITIONS
from .table import METHODS as METHODS
from .table import Method as Method
from .table import get as get

__all__ = ["ADDITIONS", "METHODS", "InnerObjective", "Method", "MethodOptions", "OuterBatch", "get"]
