"""``python -m rusteeze`` is the command ``rusteeze``."""

from rusteeze.cli.main import main

main(prog_name="rusteeze")
