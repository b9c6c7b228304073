"""What a runner process runs: the wire, and the engines behind it."""
