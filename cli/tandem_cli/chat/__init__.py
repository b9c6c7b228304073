"""What `tandem run` and `tandem ps` share: a server spoken to over HTTP, and a conversation with one of its models.

Nothing here imports the server or torch, so that both commands start at once.
"""
