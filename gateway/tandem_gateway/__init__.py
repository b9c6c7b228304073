"""The gateway: the one address that clients call; routes each request to a pod that serves its model."""
