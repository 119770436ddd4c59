"""The same recipe on Flower: in one process, in Ray's actors, or across machines. Needs the extra `flower`."""
