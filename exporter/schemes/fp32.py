"""fp32: weights as they are. The yardstick."""

from exporter.formats import Scheme

SCHEME = Scheme("fp32", rules=())
