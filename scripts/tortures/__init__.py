"""Damaged, hostile and interrupted inputs: each form counts what must not happen."""
