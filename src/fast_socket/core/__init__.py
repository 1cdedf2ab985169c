"""The traits and what every backend shares: frames, packets, batches, waiting, endpoints, routes, affinity, errors.

`core` imports no backend. Read in this order, it is the design in code: `layout` (one frame), `frames` (the pool and
its invariants), `packet` (a frame as an object), `batch` (frames as columns), `polling` (waiting for them), `traits`
(what a backend makes of it).
"""
