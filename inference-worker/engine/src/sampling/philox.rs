//! Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
//! the n-th number is a function of key and counter, so that any worker can draw it without the ones before.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The block of four words at `counter` under `key`.
#[must_use]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let (high0, low0) = multiply(MULTIPLIERS[0], counter[0]);
        let (high1, low1) = multiply(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

/// High and low word of the product.
fn multiply(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// Which number is drawn. Equal draws are equal numbers on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The request's seed.
    pub seed: u64,
    /// Which of the `n` choices of a request.
    pub choice: u32,
    /// Index of the token in the output, from 0.
    pub index: u32,
    /// Counts the draws at one index; choosing the token is draw 0.
    pub draw: u32,
}

impl Draw {
    /// A number in [0, 1) with 53 random bits.
    #[must_use]
    pub fn uniform(self) -> f64 {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [a, b, ..] = philox4x32([self.choice, self.index, self.draw, 0], key);
        let bits = (u64::from(a) << 21) ^ (u64::from(b) >> 11);
        bits as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library.
    #[test]
    fn known_answers() {
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn uniform_numbers_lie_below_one_and_every_field_counts() {
        let base = Draw { seed: 7, choice: 0, index: 0, draw: 0 };
        let others = [
            Draw { seed: 8, ..base },
            Draw { seed: 7 + (1 << 32), ..base },
            Draw { choice: 1, ..base },
            Draw { index: 1, ..base },
            Draw { draw: 1, ..base },
        ];
        for draw in others {
            assert!((0.0..1.0).contains(&draw.uniform()));
            assert_ne!(draw.uniform(), base.uniform(), "{draw:?}");
        }
    }
}
