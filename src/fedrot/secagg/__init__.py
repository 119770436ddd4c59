"""Secure aggregation: the server learns a weighted mean of the clients' vectors and nothing else about them.

Double masking after Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS
2017), without network: `SecAggClient` and `SecAggServer` are driven step by step and exchange messages.

Unsigned sessions protect against an honest but curious server, one that follows the protocol and keeps everything it
sees, also together with clients fewer than the threshold. Signed sessions add the checks of the paper's variant
against a server that departs from the protocol; neither has been audited. What a mean itself tells, no protocol
hides: see differential privacy.
"""

from fedrot.secagg.client import SecAggClient, Signer
from fedrot.secagg.codec import decode, encode
from fedrot.secagg.fixed_point import FixedPoint
from fedrot.secagg.keys import identity_of, new_identity
from fedrot.secagg.messages import Advert, Consent, Inbox, Masked, Reveal, Roster, Sealed, Survivors
from fedrot.secagg.server import Aggregate, SecAggServer
from fedrot.secagg.session import Session, least_threshold, threshold_of

__all__ = [
    "Advert",
    "Aggregate",
    "Consent",
    "FixedPoint",
    "Inbox",
    "Masked",
    "Reveal",
    "Roster",
    "Sealed",
    "SecAggClient",
    "SecAggServer",
    "Session",
    "Signer",
    "Survivors",
    "decode",
    "encode",
    "identity_of",
    "least_threshold",
    "new_identity",
    "threshold_of",
]
