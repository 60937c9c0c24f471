"""The one place that holds the version number; it imports nothing, so that `--version` costs nothing."""

__version__ = "0.1.0"
