"""What a JSON schema cannot say: which texts are grammars. Loaded by schemathesis.

In *valid* data only, grammars that were drawn as arbitrary text are replaced by ones that are grammars; all
other fields, and invalid data altogether, are sent as drawn.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

GRAMMARS: dict[str, Any] = {
    "json_schema": {"name": "x", "schema": {"enum": [1, "a", None]}},
    "regex": "(cat|world)+",
    "grammar": 'start: "a" | "b"',
}


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    valid = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    form = case.body.get("response_format") if isinstance(case.body, dict) else None
    if valid and isinstance(form, dict):
        case.body = {**case.body, "response_format": {k: GRAMMARS.get(k, v) for k, v in form.items()}}
