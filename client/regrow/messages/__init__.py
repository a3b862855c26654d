"""The messages of every link: client <-> node, node <-> node, node <-> control store.

All are msgspec structs that travel as msgpack arrays; a wire message *is* an event of the core that
receives it.  Messages carry batches: a loop turn sends one message of many items, not many
messages. A task's spec travels and is logged as the bytes its client made; nodes decode its header
only.

Ids are bytes (``regrow.ids``); sizes are bytes; resources are in ten-thousandths
(``config.RESOURCE_UNIT``); times are seconds unless the name says otherwise.

One module for each kind of link, and ``parts`` for what several carry; all names are also here, and
are imported from here.
"""

# ruff: noqa: F403 - every name of the four is one of this module
from regrow.messages.clients import *
from regrow.messages.control_store import *
from regrow.messages.parts import *
from regrow.messages.peers import *
