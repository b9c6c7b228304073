"""The operator: watches Models and keeps what each of them needs in the cluster."""
