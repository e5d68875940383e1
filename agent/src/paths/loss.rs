//! How many probes were lost, and whether two candidates differ in that.

/// Fewer probes prove nothing.
const ENOUGH: u32 = 48;
/// Standard deviations by which two rates must differ: by chance, one comparison in 10⁹ shows that.
const SIGMAS: f64 = 6.0;
/// A candidate that loses more than this part is lossy.
const TOLERATED: f64 = 0.1;
/// Fewer lost probes do not make a candidate lossy.
const FEW: u32 = 3;

/// Probes of a period, and how many of them were lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Loss {
    /// Probes whose end is known.
    pub probes: u32,
    /// Those of them that were not answered.
    pub lost: u32,
}

impl Loss {
    /// The lost part, from 0 to 1.
    pub fn rate(self) -> f64 {
        f64::from(self.lost) / f64::from(self.probes.max(1))
    }

    /// Whether so much is lost that another candidate might be preferable.
    pub fn is_lossy(self) -> bool {
        self.lost >= FEW && self.rate() > TOLERATED
    }

    /// Whether chance does not explain that this rate is higher than the other: the test of two proportions.
    pub fn clearly_exceeds(self, other: Self) -> bool {
        if self.probes.min(other.probes) < ENOUGH {
            return false;
        }
        let (probes, of_other) = (f64::from(self.probes), f64::from(other.probes));
        let common = f64::from(self.lost + other.lost) / (probes + of_other);
        let variance = common * (1.0 - common) * (1.0 / probes + 1.0 / of_other);
        self.rate() - other.rate() > SIGMAS * variance.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(probes: u32, lost: u32) -> Loss {
        Loss { probes, lost }
    }

    #[test]
    fn a_fifth_is_clearly_more_than_nothing_in_five_minutes_but_not_in_one() {
        assert!(loss(300, 60).clearly_exceeds(loss(300, 0)));
        assert!(!loss(60, 12).clearly_exceeds(loss(60, 0)));
        assert!(!loss(300, 0).clearly_exceeds(loss(300, 60)));
    }

    #[test]
    fn what_chance_explains_is_not_clear() {
        assert!(!loss(300, 170).clearly_exceeds(loss(300, 140)));
        assert!(!loss(300, 300).clearly_exceeds(loss(47, 0)));
        assert!(!Loss::default().clearly_exceeds(Loss::default()));
    }
}
