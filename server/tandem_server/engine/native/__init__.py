"""The native engine: slots, the plain and the overlapped loop, and the models."""
