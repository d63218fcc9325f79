"""The errors a user can cause or must act on. Each message says what is wrong, where, and what to do."""


class RayrecError(Exception):
    """Base of every error that is reported as one message, never as a traceback."""


class RecipeError(RayrecError):
    """The recipe, an override or a command-line argument is wrong."""


class DataError(RayrecError):
    """The given logs, or a Dataset made from them, cannot be used."""


class ModelError(RayrecError):
    """A model bundle or a Release is damaged, missing, or does not fit what it is used with."""


class StorageError(RayrecError):
    """The storage cannot be reached, read or written, or what it holds fails its checksum."""


class ClusterError(RayrecError):
    """The Ray cluster cannot do what was asked of it."""
