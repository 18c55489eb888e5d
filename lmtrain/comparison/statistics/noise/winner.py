"""Corrects the mean of the best of several settings for having been picked as the best."""

import numpy as np
import scipy

from lmtrain.comparison.statistics.noise.largest_difference import Z_DENSITY, Z
from lmtrain.comparison.statistics.noise.model import NoiseModel

MOST_SETTINGS = 60  # the nearest rivals; those that are farther behind hardly ever win


def mean_on_new_seeds(model: NoiseModel, sign: int) -> tuple[int, float]:
    """Return which setting has the best mean, and the mean to expect from it on new seeds.

    The best mean is best partly by luck. The expected luck is that of the parametric bootstrap: how much better than
    its true mean the winner would seem if the true means were those observed. Where one setting is far ahead, nothing
    is taken off. What equal seeds have in common favours no setting, so only the rest of the noise counts. Where the
    noise is much larger than the differences, that would be too much: the mean of all settings is the limit.
    """
    order = np.argsort(sign * model.means, kind="stable")[:MOST_SETTINGS]
    means, errors = sign * model.means[order], model.sd / np.sqrt(model.counts[order])
    if model.sd == 0:
        return int(order[0]), float(model.means[order[0]])
    drawn = means[:, None] + errors[:, None] * Z  # (settings, nodes)
    luck = 0.0
    for i, draws in enumerate(drawn):
        others = np.arange(len(means)) != i
        wins = scipy.special.ndtr((means[others, None] - draws) / errors[others, None]).prod(axis=0)
        luck += float(np.sum(Z_DENSITY * errors[i] * Z * wins))
    return int(order[0]), float(sign * min(means[0] - luck, means.mean()))
