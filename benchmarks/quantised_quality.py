"""Perplexity and divergence of quantised folders, against the model that they were made of.

    .venv/bin/python benchmarks/quantised_quality.py MODEL FOLDER ... [--tokens 50000] [--work DIR]
    .venv/bin/python benchmarks/quantised_quality.py --text calibration.txt

The text is Python's language reference (pydoc_data.topics), in windows of 512. ``--text`` writes one to
calibrate on that shares no paragraph of more than 200 characters with it: the docstrings of the standard library. With ``--work`` a run that
was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from quality_eval import evaluate, weight_bytes
from quality_text import docstrings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    if options.text:
        options.text.write_text(docstrings(), encoding="utf-8")
        return
    original, *folders = options.paths
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = evaluate(original, {f.name: f for f in folders}, options.tokens, work)
    for folder in folders:
        sums = found[folder.name]
        row = {"model": folder.name, "bytes": weight_bytes(folder), "tokens": sums.tokens, **sums.means}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
