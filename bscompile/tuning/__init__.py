"""Tuning: which form, execution block, template and configuration a layer really runs fastest in.

record.py, keys.py     what was measured, and what it depends on
database.py            records on disk; merging is a union
variants.py            what may be tried, pruned by the cost model
measurer.py            the interface of whoever measures
child.py, worker.py    the one there is: a child process that builds, checks and times
compiled.py            kernels that the worker has compiled
runner.py              where the worker runs kernels: here, or behind a TVM RPC tracker
search.py              one layer; session.py: all layers of a model
collect.py             the layers of a model; orders.py: of its other orders of features
planner.py             what a build takes from a database
estimate.py            a layer that nobody has trained yet
"""
