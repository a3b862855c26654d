"""The node: one daemon per machine (or several, for tests) that runs tasks and actors.

* ``core``      the decisions: ``Core.handle(event) -> list[Effect]``, made of the parts below
* ``events``    what the core is told and what it asks for
* ``journal``   the node's log: the open batch, and what may not leave before it is committed
* ``ledger``    resources, in exact fractions
* ``objects``   what is known of each object that something here needs
* ``transport`` bringing objects here, pinning them, making room: the object store's errands
* ``tasks``     tasks and their way from submission to result
* ``workers``   the worker pool: leases, pipelining, take-back, blocking
* ``actors``    where actors are, and the order of their calls
* ``last_words`` results of a worker that died before it sent them
* ``policy``    on which node a task should run: a pure function
* ``daemon``    the shell: sockets, processes, the connection to Postgres, timers
"""
