"""Attribution graphs of a prompt: choosing dictionaries, tracing, pruning, writing."""
