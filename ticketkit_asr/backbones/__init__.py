"""Recognisers: each module builds a network and the bundle that ties it to its sample rate, features and labels."""
