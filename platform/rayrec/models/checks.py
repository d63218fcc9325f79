"""One way to say that a setting is out of range."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds. The recipe turns it into a RecipeError."""
    if not condition:
        raise ValueError(message)
