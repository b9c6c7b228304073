"""Text of a conversation: templates, tokens in, text out, stop strings."""
