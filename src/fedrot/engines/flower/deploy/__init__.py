"""A federation across machines: certificates, keys, the real `flower-superlink` and `flower-supernode`, warm nodes."""
