//! Figures out of samples. Pure.

use std::fmt;

use serde::Serialize;

/// The middle of samples, and between what nine of ten of them lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    /// Half of them are at most this.
    pub(super) median: f64,
    /// A twentieth of them are below this.
    pub(super) p5: f64,
    /// A twentieth of them are above this.
    pub(super) p95: f64,
}

impl Spread {
    /// Of samples in any order; all 0 where there are none.
    pub(super) fn of(samples: &[f64]) -> Spread {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| match sorted.len() {
            0 => 0.0,
            len => tenths(sorted[((len - 1) as f64 * share).round() as usize]),
        };
        Spread { median: tenths(median(&sorted)), p5: at(0.05), p95: at(0.95) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.median, self.p5, self.p95)
    }
}

/// Of sorted values; 0 where there are none.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// In thousandths; none where there is nothing to be divided by.
pub(super) fn ratio(own: f64, other: f64) -> Option<f64> {
    (other > 0.0).then(|| (own / other * 1000.0).round() / 1000.0)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_needs_something_to_be_divided_by() {
        assert_eq!(ratio(1.0, 3.0), Some(0.333));
        assert_eq!(ratio(0.0, 3.0), Some(0.0));
        assert_eq!(ratio(3.0, 0.0), None);
    }

    #[test]
    fn one_wild_sample_moves_neither_the_middle_nor_the_bounds() {
        let mut samples: Vec<f64> = (0..100).map(f64::from).collect();
        let calm = Spread::of(&samples);
        assert_eq!((calm.median, calm.p5, calm.p95), (49.5, 5.0, 94.0));
        samples[99] = 1e9;
        assert_eq!(Spread::of(&samples), calm);
        assert_eq!(calm.to_string(), "50 (5 to 94)");
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_two() {
        assert_eq!(
            (median(&[]), median(&[7.0]), median(&[1.0, 4.0, 9.0]), median(&[1.0, 2.0])),
            (0.0, 7.0, 4.0, 1.5)
        );
    }
}
