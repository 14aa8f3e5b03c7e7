"""HTTP: the OpenAI API over an engine. Knows requests, limits and metrics; knows no kernels."""
