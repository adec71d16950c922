"""Hostile input: mutated nets, what is asked of each, and the limits that it must keep.

A target makes cases from a generator of random numbers and checks them: ``text`` the
reader of prototxts, ``weights`` the reader of caffemodels, ``fold`` the whole fold.
``scripts/fuzz.py`` runs them by the million, ``tests/test_fuzz.py`` a few thousand.
"""
