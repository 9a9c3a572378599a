"""What the builder cannot do without, looked for before anything else is loaded."""

import importlib.util

for _name in ("ai_edge_litert", "flatbuffers"):
    if importlib.util.find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"litert_author needs {_name}: pip install 'potluck[litert-author]'", name=_name
        )
