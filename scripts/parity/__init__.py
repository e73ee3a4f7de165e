"""Reference runners: the published scorers, each in an environment of its own (see `scripts/check_parity.py`)."""
