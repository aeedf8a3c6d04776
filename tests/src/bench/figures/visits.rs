//! In which order flows are visited. Pure.

/// Visits of a tape by Zipf, at least.
const LEAST_ZIPF: u32 = 1 << 16;

/// An order of visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Each flow once, shuffled, and then all over again: no cache holds what others have pushed out since.
    Random,
    /// By Zipf's law with exponent 1: the second most frequent flow comes half as often as the first, the third a third.
    Zipf,
}

impl Order {
    /// Its name in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Order::Random => "random",
            Order::Zipf => "zipf",
        }
    }

    /// Indices of `flows` flows, the same each time.
    pub(super) fn of(self, flows: u32) -> Vec<u32> {
        let mut numbers = Numbers(u64::from(flows));
        let mut shuffled: Vec<u32> = (0..flows).collect();
        for n in (1..shuffled.len()).rev() {
            let other = (numbers.next() % (n as u64 + 1)) as usize;
            shuffled.swap(n, other);
        }
        match self {
            Order::Random => shuffled,
            Order::Zipf => {
                let mut sum = 0.0;
                let sums: Vec<f64> = (1..=flows)
                    .map(|rank| {
                        sum += 1.0 / f64::from(rank);
                        sum
                    })
                    .collect();
                let draw = |_| {
                    let at = (numbers.next() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
                    shuffled[sums.partition_point(|upto| *upto < at).min(shuffled.len() - 1)]
                };
                (0..flows.max(LEAST_ZIPF)).map(draw).collect()
            }
        }
    }
}

/// SplitMix64 (Steele et al., OOPSLA 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_order_visits_every_flow_once() {
        let mut visits = Order::Random.of(1000);
        assert!(!visits.is_sorted());
        visits.sort_unstable();
        assert_eq!(visits, (0..1000).collect::<Vec<_>>());
        assert_eq!(Order::Random.of(1), [0]);
    }

    #[test]
    fn by_zipf_the_most_frequent_flow_has_its_share() {
        let visits = Order::Zipf.of(1000);
        assert_eq!(visits.len(), 1 << 16);
        let mut counts = vec![0_u32; 1000];
        visits.iter().for_each(|visit| counts[*visit as usize] += 1);
        counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        // Of 7.485, the sum of 1/k up to 1,000.
        let share = f64::from(counts[0]) / visits.len() as f64;
        assert!((share - 1.0 / 7.485).abs() < 0.01, "{share}");
        assert!((1.8..2.2).contains(&(f64::from(counts[0]) / f64::from(counts[1]))));
    }
}
