"""The face: one function per verb of the command line, each ``f(workspace, what, *, <options>, run=None) -> Item``.

``workspace`` is a :class:`workbench.Workspace` or a path (made if missing); ``what`` is what the verb works on: a
recipe (a file, a bundled name, or the object), a dictionary's id, a pair, a model, a prompt. What is complete is
reused. The item has ``.id``, ``.path`` and ``.manifest``; where a call makes several results, ``.all`` has them.
"""
