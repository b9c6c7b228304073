"""The `tandem` command: serve without Kubernetes, look, and run the demo."""
