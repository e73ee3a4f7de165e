"""The one exception for what a user can put right: the command shows its message as one line, without a traceback."""


class UsageError(ValueError):
    """A value, the rule that it breaks, and the remedy."""
