from . import data as data
from . import evaluation as evaluation
from . import methods as methods
from . import models as models
from . import ops as ops
from . import recipes as recipes
from .config import InnerConfig as InnerConfig
from .config import PrecisionConfig as PrecisionConfig
from .config import TeacherPolicy as TeacherPolicy
from .config import ThreatModel as ThreatModel
from .evaluation.accuracy import AttackResult as AttackResult
from .evaluation.accuracy import evaluate as evaluate
from .inner.drop_in import adaad_inner_loss as adaad_inner_loss
from .inner.maximizer import InnerMaximizer as InnerMaximizer
from .inner.maximizer import InnerResult as InnerResult
from .models.factory import create_model as create_model
from .models.factory import load_model as load_model
from .run_config import RunConfig as RunConfig
from .runtime.distributed import ProcessGroup as ProcessGroup
from .runtime.distributed import current_process_group as current_process_group
from .training.averaging import AveragedWeights as AveragedWeights
from .training.distiller import Distiller as Distiller
from .training.distiller import StepResult as StepResult
from .training.nonfinite import NonFiniteError as NonFiniteError
from .training.reports import TrainingResult as TrainingResult
from .training.run import train as train
from .training.trainer import Trainer as Trainer

__version__: str

__all__ = [
    "AttackResult",
    "AveragedWeights",
    "Distiller",
    "InnerConfig",
    "InnerMaximizer",
    "InnerResult",
    "NonFiniteError",
    "PrecisionConfig",
    "ProcessGroup",
    "RunConfig",
    "StepResult",
    "TeacherPolicy",
    "ThreatModel",
    "Trainer",
    "TrainingResult",
    "adaad_inner_loss",
    "create_model",
    "current_process_group",
    "data",
    "evaluate",
    "evaluation",
    "load_model",
    "methods",
    "models",
    "ops",
    "recipes",
    "train",
]
