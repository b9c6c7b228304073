"""Runner processes and which models are resident."""
