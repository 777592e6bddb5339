"""What can go wrong in `metrics`, by cause; the message of each is one line that ends with the way out."""


class MetricError(ValueError):
    """The base of all errors of this package: `str(error)` is one line for the command line to print."""


class BadArray(MetricError):
    """An array cannot be scored: NaN, a wrong shape, too few pictures or patients, or sides that do not match."""


class UnknownName(MetricError):
    """A score or an encoder that does not exist; the message names the nearest ones."""


class BadEncoder(MetricError):
    """A folder that holds no usable picture encoder: a file is missing, pickled, or does not fit its config."""
