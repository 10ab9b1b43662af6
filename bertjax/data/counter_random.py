"""Randomness without state: numbers that are a pure function of a key and a counter.

Everything random in the input pipeline comes from here, so that example i is the same whoever
computes it, in whatever batch, process or order. Keys and counters are uint64 arrays or integers
and broadcast against each other. The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators") with the key as its state and the counter as its step;
its outputs serve as numbers and as keys of further streams.
"""

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


def random_bits(key: npt.ArrayLike, counter: npt.ArrayLike) -> Bits:
    """Return number `counter` of stream `key`: 64 random bits, also usable as a key."""
    # Wrapping around is the arithmetic that is wanted; numpy warns of it for scalars only.
    with np.errstate(over="ignore"):
        x = (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.asarray(
            key
        ).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
        x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
        return np.asarray(x ^ (x >> np.uint64(31)))


def below(bits: Bits, bound: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return integers in [0, bound), 0 where bound is 0, from the upper 32 bits; bound < 2**31."""
    scaled = (bits >> np.uint64(32)) * np.asarray(bound).astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def fraction(bits: Bits) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) from the upper 53 bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def binomial_half(keys: Bits, trials: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many of `trials` fair coins show heads, one number a key: counted bits."""
    heads = np.zeros(len(keys), np.int64)
    for word in range(-(-int(trials.max(initial=0)) // 64)):
        used = np.clip(trials - 64 * word, 0, 64)
        unused = np.minimum(64 - used, 63).astype(np.uint64)
        bits = random_bits(keys, word) >> unused
        heads += np.where(used > 0, np.bitwise_count(bits), 0)
    return heads


def permuted(
    indices: npt.NDArray[np.int64], size: int, key: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Return where a random permutation of range(size) takes `indices`, in O(1) memory.

    A Feistel network on pairs (x mod a, x div a) with a * b just over `size`; what falls outside is
    sent through again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    a = int(np.ceil(np.sqrt(size)))
    b = -(-size // a)
    result = np.array(indices, np.int64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] % a, result[outside] // a
        for half_round in range(_FEISTEL_ROUNDS):
            round_key = random_bits(key, half_round)
            if half_round % 2:
                left = (left + below(random_bits(round_key, right), a)) % a
            else:
                right = (right + below(random_bits(round_key, left), b)) % b
        result[outside] = right * a + left
        outside = outside[result[outside] >= size]
    return result
