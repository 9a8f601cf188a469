//! Which logins get how many of a target's pooled sessions? The answer is a pure function.

use std::collections::BinaryHeap;

/// What a key's claim to sessions is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// Number of recent logins; a key never gets more sessions than that.
    pub logins: usize,
    /// Number of sessions that the pool holds for the key.
    pub held: usize,
}

/// Divides this many sessions among keys, of which the first has logged in last, in proportion to
/// their logins (by D'Hondt's method, which parliaments use). If two keys deserve a session
/// equally, it goes to the one that holds it, so that they do not take it from each other at every
/// login; otherwise it goes to the one that logged in last.
pub fn allot(claims: &[Claim], sessions: usize) -> Vec<usize> {
    let mut shares = vec![0; claims.len()];
    let bid = |key: usize, share: usize| {
        let Claim { logins, held } = claims[key];
        // The bid is in millionths of a login for each session; what rounding loses makes no
        // relevant difference.
        (share < logins).then(|| {
            (
                logins * 1_000_000 / (share + 1),
                held > share,
                std::cmp::Reverse(key),
            )
        })
    };
    let mut bids: BinaryHeap<_> = (0..claims.len()).filter_map(|key| bid(key, 0)).collect();
    for _ in 0..sessions {
        let Some((.., std::cmp::Reverse(key))) = bids.pop() else {
            break;
        };
        shares[key] += 1;
        bids.extend(bid(key, shares[key]));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(claims: &[(usize, usize)], sessions: usize) -> Vec<usize> {
        let claims: Vec<_> = claims
            .iter()
            .map(|&(logins, held)| Claim { logins, held })
            .collect();
        allot(&claims, sessions)
    }

    #[test]
    fn a_key_gets_no_more_sessions_than_it_has_logins() {
        assert_eq!(shares(&[(1, 0)], 5), [1]);
        assert_eq!(shares(&[(9, 0)], 5), [5]);
        assert_eq!(shares(&[(9, 0)], 0), [0]);
        assert_eq!(shares(&[], 5), [0; 0]);
    }

    #[test]
    fn sessions_are_divided_in_proportion_to_logins() {
        assert_eq!(shares(&[(6, 0), (3, 0)], 3), [2, 1]);
        assert_eq!(shares(&[(1, 0), (10, 0)], 4), [0, 4]);
    }

    #[test]
    fn keys_that_log_in_alternately_do_not_take_sessions_from_each_other() {
        assert_eq!(shares(&[(2, 0), (2, 1)], 1), [0, 1]);
        assert_eq!(
            shares(&[(2, 0), (2, 0)], 1),
            [1, 0],
            "without a holder the last login decides"
        );
        assert_eq!(
            shares(&[(3, 0), (2, 1)], 1),
            [1, 0],
            "more logins win over holding"
        );
    }
}
