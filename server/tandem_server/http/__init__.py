"""One router a dialect: what clients send and get."""
