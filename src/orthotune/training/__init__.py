"""Fine-tuning from Python: ``fit(FitConfig(...))`` is what ``orthotune fit`` runs."""

from orthotune.training.config import FitConfig
from orthotune.training.evaluate import evaluate
from orthotune.training.fit import fit
from orthotune.training.merge import merge
from orthotune.training.metrics import Metrics
from orthotune.training.predict import predict

__all__ = ["FitConfig", "Metrics", "evaluate", "fit", "merge", "predict"]
