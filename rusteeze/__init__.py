"""Rusteeze, a compiler for LLM inference: a Hugging Face model in, a fast artifact out."""

__version__ = "0.1.0"
