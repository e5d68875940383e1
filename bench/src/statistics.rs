//! Medians and quantiles.

/// The median of some samples and their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median; of an even number of samples, the mean of the middle two.
    pub median: f64,
    /// The smallest sample.
    pub min: f64,
    /// The greatest sample.
    pub max: f64,
}

impl Summary {
    /// `None` without samples.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let upper = *samples.get(middle)?;
        let median = if samples.len().is_multiple_of(2) {
            (samples[middle - 1] + upper) / 2.0
        } else {
            upper
        };
        Some(Self {
            median,
            min: samples[0],
            max: samples[samples.len() - 1],
        })
    }

    /// As tables show it: `median (min..max)`.
    pub fn text(self) -> String {
        format!("{:.2} ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

/// The samples at these shares of the sorted order (0 is the smallest sample, 1 the greatest). `NaN` without
/// samples.
pub fn quantiles<const N: usize>(mut samples: Vec<f64>, shares: [f64; N]) -> [f64; N] {
    samples.sort_by(f64::total_cmp);
    shares.map(|share| {
        let index = (share * samples.len().saturating_sub(1) as f64).round() as usize;
        samples.get(index).copied().unwrap_or(f64::NAN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_samples_lies_between_the_middle_two() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            summary,
            Summary {
                median: 2.5,
                min: 1.0,
                max: 4.0
            }
        );
    }

    #[test]
    fn quantiles_are_samples_in_sorted_order() {
        let samples = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantiles(samples, [0.0, 0.5, 0.99]), [1.0, 51.0, 99.0]);
        assert!(quantiles(Vec::new(), [0.5])[0].is_nan());
    }
}
