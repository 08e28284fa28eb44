"""Inference on tickets that are really smaller: layers over sparse and compacted matrices, chosen by measurement."""
