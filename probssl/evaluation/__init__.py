"""Evaluation of representations: functions of arrays and labels, nothing else.

Representations (n, dim) and labels (n,) are NumPy arrays or tensors, training and test
part separate. Labels of another length, NaN, and too few or too small classes raise a
ValueError.
"""

from ..estimates import Estimate, Undefined
from .clustering import Clustering, cluster, matched_accuracy
from .collapse import (
    AlignmentUniformity,
    active_units,
    alignment_uniformity,
    effective_rank,
    lidar,
    rankme,
)
from .components import NumberOfComponents, number_of_components
from .conformal import PredictionSets, prediction_sets
from .crowding import Crowding, crowding
from .disentanglement import DCI, dci, mcc, mig, sap
from .information import gaussian_information, info_nce, nearest_neighbour_information
from .novelty import Detection, detection, log_kernel_density, neighbour_distance
from .probes import (
    FewLabel,
    few_label_probe,
    knn,
    knns,
    linear_probe,
    linear_probes,
    mlp_probe,
    scores,
    style_probe,
)
from .strokes import Strokes, strokes

__all__ = [
    "DCI",
    "AlignmentUniformity",
    "Clustering",
    "Crowding",
    "Detection",
    "Estimate",
]
__all__ += ["FewLabel", "NumberOfComponents", "PredictionSets", "Undefined"]
__all__ += ["detection", "log_kernel_density", "neighbour_distance", "prediction_sets"]
__all__ += ["active_units", "alignment_uniformity"]
__all__ += [
    "cluster",
    "crowding",
    "effective_rank",
    "few_label_probe",
    "gaussian_information",
]
__all__ += ["info_nce", "knn", "knns", "linear_probe", "linear_probes"]
__all__ += ["lidar", "matched_accuracy", "mlp_probe", "nearest_neighbour_information"]
__all__ += ["number_of_components", "rankme", "scores", "style_probe"]
__all__ += ["Strokes", "dci", "mcc", "mig", "sap", "strokes"]
