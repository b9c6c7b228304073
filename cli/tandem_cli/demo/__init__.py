"""`tandem demo`: from nothing to streamed answers of a Model that was `kubectl apply`-ed.

`command` is what a person calls, `flow` the steps in order, `clusters` the three kinds of cluster, `assets` what pods
need from this machine, `client` what runs inside the cluster, `story` what a person sees meanwhile.
"""
