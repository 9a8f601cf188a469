//! Which kinds of login get how many of a target's spare sessions. A pure function.

use std::collections::BinaryHeap;

/// What speaks for a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// Logins lately: it never gets more spares than that.
    pub logins: usize,
    /// Spares that it has.
    pub held: usize,
}

/// Divides this many spares among kinds, the one that logged in last first, in proportion to their
/// logins (as D'Hondt divides seats). Where two deserve a spare alike it goes to the one that has
/// it, so that kinds in turn do not take it from each other at every login, else to the one that
/// logged in last.
pub fn allot(claims: &[Claim], seats: usize) -> Vec<usize> {
    let mut shares = vec![0; claims.len()];
    let bid = |kind: usize, share: usize| {
        let Claim { logins, held } = claims[kind];
        // In millionths of a login for each spare: what is lost to rounding decides nothing that
        // matters.
        (share < logins).then(|| {
            (
                logins * 1_000_000 / (share + 1),
                held > share,
                std::cmp::Reverse(kind),
            )
        })
    };
    let mut bids: BinaryHeap<_> = (0..claims.len()).filter_map(|kind| bid(kind, 0)).collect();
    for _ in 0..seats {
        let Some((.., std::cmp::Reverse(kind))) = bids.pop() else {
            break;
        };
        shares[kind] += 1;
        bids.extend(bid(kind, shares[kind]));
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(claims: &[(usize, usize)], spares: usize) -> Vec<usize> {
        let claims: Vec<_> = claims
            .iter()
            .map(|&(logins, held)| Claim { logins, held })
            .collect();
        allot(&claims, spares)
    }

    #[test]
    fn a_kind_gets_no_more_spares_than_it_has_logins() {
        assert_eq!(shares(&[(1, 0)], 5), [1]);
        assert_eq!(shares(&[(9, 0)], 5), [5]);
        assert_eq!(shares(&[(9, 0)], 0), [0]);
        assert_eq!(shares(&[], 5), [0; 0]);
    }

    #[test]
    fn spares_are_divided_in_proportion_to_logins() {
        assert_eq!(shares(&[(6, 0), (3, 0)], 3), [2, 1]);
        assert_eq!(shares(&[(1, 0), (10, 0)], 4), [0, 4]);
    }

    #[test]
    fn kinds_in_turn_leave_each_other_what_they_have() {
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
