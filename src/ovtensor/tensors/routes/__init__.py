"""One module a library: how its tensors are read. Nothing here is loaded before it is needed."""
