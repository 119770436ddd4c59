"""Secure aggregation over Flower: the server sees masked vectors and learns their weighted mean.

The protocol is `fedrot.secagg`; here its messages travel, and adapters become vectors.
"""
