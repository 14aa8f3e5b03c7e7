"""A Hugging Face folder or a GGUF file → one traced graph and lazy weights.

transformers is kept quiet in this room. What it warns of either ends in an error of ours or does not
matter here, and a command answers with one line; where CI is set it would even say everything twice.
"""

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

set_verbosity_error()
disable_progress_bar()
