//! How many second attempts a gateway may start on mere suspicion. Without a bound they would keep an overload alive:
//! slow workers look suspect, and every hedge makes all of them slower.

/// Tokens of a bucket: new work earns a share of a hedge, a hedge spends one.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    hundredths: u32,
    burst: u32,
    share: u32,
}

const WHOLE: u32 = 100;

impl Default for Budget {
    fn default() -> Self {
        Self::new(256, 10)
    }
}

impl Budget {
    /// At first, and at most, `burst` hedges: as many streams as one worker's end should move at once. Every new choice
    /// earns `share` percent of one.
    #[must_use]
    pub fn new(burst: u32, share: u32) -> Self {
        let burst = burst.saturating_mul(WHOLE);
        Self { hundredths: burst, burst, share }
    }

    /// A new choice was asked for.
    pub fn earn(&mut self) {
        self.hundredths = self.hundredths.saturating_add(self.share).min(self.burst);
    }

    /// Takes one hedge, if there is one.
    pub fn spend(&mut self) -> bool {
        match self.hundredths.checked_sub(WHOLE) {
            Some(left) => {
                self.hundredths = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_are_a_burst_and_then_a_share_of_new_work() {
        let mut budget = Budget::new(2, 10);
        assert_eq!([budget.spend(), budget.spend(), budget.spend()], [true, true, false]);
        (0..9).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        (0..1000).for_each(|_| budget.earn());
        assert_eq!([budget.spend(), budget.spend(), budget.spend()], [true, true, false]);
    }
}
