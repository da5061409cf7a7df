"""What a user's mistake is called."""


class RequestError(ValueError):
    """A request that can't be met, in one sentence that says why and what to do."""
