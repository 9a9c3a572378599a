"""The one place where a file is run while it is being made: backbones and exports are compared."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ai_edge_litert.interpreter import Interpreter

from litert_author.errors import AuthorError
from litert_author.graph import Array

# The signature of a file that only answers.
SERVING: Final = "serving_default"


def call(file: bytes, arrays: Mapping[str, Array], signature: str = SERVING) -> dict[str, Array]:
    """What one signature gives.

    Raises:
        AuthorError: the runtime does not take the file.
    """
    return calls(file, [(signature, arrays)])[0]


def calls(file: bytes, wanted: Sequence[tuple[str, Mapping[str, Array]]]) -> list[dict[str, Array]]:
    """What signatures give, one after the other on one interpreter.

    Raises:
        AuthorError: the runtime does not take the file.
    """
    try:
        interpreter: Any = Interpreter(model_content=file, num_threads=1)
        return [interpreter.get_signature_runner(name)(**arrays) for name, arrays in wanted]
    except (ValueError, RuntimeError) as error:
        raise AuthorError(f"LiteRT does not run the file: {str(error).splitlines()[0]}") from None
