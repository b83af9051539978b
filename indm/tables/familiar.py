"""Whether observations are like the simulated ones."""

import math
import warnings

import numpy as np
from sklearn.covariance import OAS

from indm.tables.columns import Array, are_near, moments_of_most


class Familiar:
    """The farthest that simulated observations are from their centre, and a warning for what is
    farther, in Mahalanobis' distance of asinh((x − centre)/scale).
    """

    def __init__(self, c: Array):
        self.centre = np.nanmedian(c, axis=0)
        self.centre, scale = moments_of_most(np.where(np.isnan(c), self.centre, c))
        self.scale = np.where(scale > 0, scale, 1.0)
        self.is_same = scale == 0
        self.rows = len(c)
        self.law = OAS(assume_centered=True).fit(self._near(c))
        self.limit = self.distance(c).max()

    def _near(self, c: Array) -> Array:
        # what is missing is at the centre
        return np.nan_to_num(np.arcsinh((c - self.centre) / self.scale))

    def distance(self, c: Array) -> Array:
        """Distance of each row, (m,); infinite where an entry that was the same in all simulations
        differs.
        """
        differs = self.is_same & ~are_near(c, self.centre) & ~np.isnan(c)
        return np.where(differs.any(1), np.inf, np.sqrt(self.law.mahalanobis(self._near(c))))

    def check(self, c: Array) -> None:
        """A warning where more rows are beyond the limit than of rows from the simulator by chance."""
        distance = self.distance(c)
        beyond, expected = (distance > self.limit).sum(), len(c) / self.rows
        if beyond > expected + 3 * math.sqrt(expected):
            verb = "is" if beyond == 1 else "are"
            far = f"{distance.max():.3g} deviations where these have at most {self.limit:.3g}"
            warnings.warn(
                f"x is unlike the simulated ones: {beyond} of {len(c)} {verb} farther from their "
                f"centre than all of {self.rows}, {far}; a posterior there is a guess",
                stacklevel=4,
            )
