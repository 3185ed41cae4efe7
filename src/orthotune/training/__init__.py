"""Fine-tuning from Python: ``fit(FitConfig(...))`` is what ``orthotune fit`` runs."""

from orthotune.training.config import FitConfig
from orthotune.training.evaluation import evaluate
from orthotune.training.fitting import fit
from orthotune.training.merging import merge
from orthotune.training.metrics import Metrics
from orthotune.training.prediction import predict

__all__ = ["FitConfig", "Metrics", "evaluate", "fit", "merge", "predict"]
