"""Measures the service against the least that its work can cost, in the same run.

Each measurement is a contest between Duostore and a floor: a server that does nothing, or
the store's own client with nothing around it. They take turns, and what counts is how they
compare pair by pair, since the speed of a shared machine changes from second to second.
"""
