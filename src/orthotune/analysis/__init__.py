"""What an adapter did to a model: angles, spectra, subspaces, norms, movement, features."""

from orthotune.analysis.angles import Angles, pair_angles
from orthotune.analysis.features import Cka, linear_cka
from orthotune.analysis.inspection import Analysis, LayerAnalysis, inspect
from orthotune.analysis.matrices import Matrix, Movement

__all__ = ["Analysis", "Angles", "Cka", "LayerAnalysis", "Matrix", "Movement", "inspect", "linear_cka", "pair_angles"]
