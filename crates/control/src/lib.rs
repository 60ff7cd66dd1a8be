//! QMP for the nodes of a running graph: the wire, the commands and their schema. Sockets belong to whoever uses it.
