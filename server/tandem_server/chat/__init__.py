"""Text on its way to tokens and back: templates, tokenizers, stop strings."""
