"""The seeded simulator: the real cores of nodes and control store, everything else simulated.

* ``world``    virtual time, the one random source, the trace
* ``programs`` what drivers and tasks do: random programs, and their golden results
* ``clients``  drivers and workers, over FIFO links
* ``node``     the shell of a node: processes, memory, peers, the connection to Postgres
* ``control``  the shell of the control store, and the database with its faults
* ``cluster``  all of it together; faults come and go
* ``checks``   what must hold: after every step, and at the end
* ``mutants``  seeded bugs that the checks have to find
* ``runner``   seeds, one after the other; how to replay one

The same seed gives the same trace. Nothing here reads a clock or starts a thread.
"""
