"""Members of a cluster: who they are, how they are, and what every process believes of them.

docs/decisions/0009 says why. ``membership`` is the rows and what may become of them, ``view`` keeps
this process's ``NodePool`` in step with them, ``heartbeat`` writes down how members are, ``admin``
is what an administrator does, ``wire`` is how members are reached.
"""
