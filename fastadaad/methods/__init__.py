"""The training methods: a table of rows, the inner objectives and outer losses they name, and their options."""

from fastadaad.methods.objectives import InnerObjective
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.outer_batch import OuterBatch
from fastadaad.methods.table import ADDITIONS, METHODS, Method, get

__all__ = ["ADDITIONS", "METHODS", "InnerObjective", "Method", "MethodOptions", "OuterBatch", "get"]
