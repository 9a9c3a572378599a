"""What a model's author can get wrong, as one typed error with one line of text."""

from wire import PotluckError


class AuthorError(PotluckError):
    """The model cannot be written as described; the text says which part and what would do."""
