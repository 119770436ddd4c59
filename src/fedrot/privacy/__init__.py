"""Differential privacy of whole clients, around any method whose server needs only sums.

**What a client reveals.** Let `w` be the adapter that a round broadcasts, `x_i` what client `i` uploads (after the
method's `before_upload`, so rotated by FedRot), over all tensors that travel, and `u_i = x_i - w`. Clipping to `C`
replaces `u_i` by `u_i min(1, C / ||u_i||)`; an update that is not finite becomes zero. A rotation is the client's own
doing, a function of its own factors and of the broadcast, so a clip after it bounds what is uploaded. A clip before it
would bound nothing: a rotation moves a factor by up to twice its norm, however small the update.

**Sensitivity.** All weights are equal and known, so with `m` clients chosen for the round

    S = sum_i clip(u_i),        w' = w + (S + C sigma z) / m,      z standard normal            (central)
    x_i' = w + clip(u_i) + C sigma z_i                                                          (local)

One client changes `S` (and its own message) by at most `s C`: `s = 2` if its data set is replaced by another
(`replace-one`), `s = 1` if its updates are replaced by zeros (`zero-out`). `m` is what was chosen, not what reported: a
client that drops out counts as a zero update, and the noise stays what is accounted for. Sample counts as weights are
refused: they are private, and bound nothing.

**Composition.** Each round is a Gaussian mechanism with `mu = s / sigma` in the sense of Gaussian differential privacy
(Dong, Roth and Su, JRSSB 2022), and `k` of them, chosen adaptively, are exactly one with `mu = s sqrt(k) / sigma`. `k`
is the largest number of rounds that any client was chosen for: in the others its data is not used. A round that is done
again counts again: `releases` keeps the list. See `accountant`.

**Sampling.** `choose_clients` draws a fixed number without replacement from the recipe's seed, which every node knows.
Who takes part is therefore public, and no amplification by sampling is claimed.

Nothing here depends on an engine; everything takes a stack of clients where it says so.
"""

from fedrot.privacy.accountant import Accountant, delta_of, epsilon_of, noise_for
from fedrot.privacy.mechanism import PrivateMean, Protected, clip, private_mean, protect
from fedrot.privacy.noise import Noise, make_noise, seeded_noise, system_noise
from fedrot.privacy.releases import Releases
from fedrot.privacy.support import check_delta, check_privacy, check_secret, covers

__all__ = [
    "Accountant",
    "Noise",
    "PrivateMean",
    "Protected",
    "Releases",
    "check_delta",
    "check_privacy",
    "check_secret",
    "clip",
    "covers",
    "delta_of",
    "epsilon_of",
    "make_noise",
    "noise_for",
    "private_mean",
    "protect",
    "seeded_noise",
    "system_noise",
]
