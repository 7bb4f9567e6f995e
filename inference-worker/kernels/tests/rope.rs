//! Rotary angles against formulas in float64, and the turning of pairs.

mod random;

use random::{Random, bits};
use tandem_kernels::rope::{Layout, Scaling, angles, copy_pieces, frequencies, rope};
use tandem_kernels::{Pool, Segments};

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} for {b}");
}

#[test]
fn plain_and_linear_frequencies_are_powers_of_the_base() {
    let plain = frequencies(64, 10_000.0, Scaling::None, None);
    let slow = frequencies(64, 10_000.0, Scaling::Linear { factor: 4.0 }, None);
    let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32 * 0.25).collect();
    let tuned = frequencies(64, 10_000.0, Scaling::None, Some(&factors));
    assert_eq!(plain.len(), 32);
    for i in 0..32 {
        let truth = 10_000f64.powf(-(2.0 * i as f64) / 64.0);
        near(plain[i], truth);
        near(slow[i], truth / 4.0);
        near(tuned[i], truth / f64::from(factors[i]));
    }
}

/// Kimi's values: 64 dimensions, base 50000, factor 32 over 4096.
#[test]
fn yarn_keeps_fast_frequencies_and_stretches_slow_ones() {
    let base: f64 = 50_000.0;
    for (beta_fast, beta_slow) in [(32.0, 1.0), (1.0, 1.0)] {
        let scaling = Scaling::Yarn { factor: 32.0, original_context: 4096.0, beta_fast, beta_slow };
        let scaled = frequencies(64, base, scaling, None);
        // The dimension whose wavelength makes so many turns over the original context.
        let dimension =
            |turns: f64| 64.0 * (4096.0 / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
        let (low, high) = (dimension(beta_fast).floor(), dimension(beta_slow).ceil());
        for (i, scaled) in scaled.iter().enumerate() {
            let plain = base.powf(-(i as f64) / 32.0);
            let i = i as f64;
            if i <= low {
                near(*scaled, plain);
            } else if i >= high {
                near(*scaled, plain / 32.0);
            } else {
                let slow = (i - low) / (high - low);
                near(*scaled, plain * (1.0 - slow) + plain / 32.0 * slow);
            }
        }
        assert!(high > low, "betas {beta_fast}/{beta_slow} leave a ramp from {low} to {high}");
    }
}

#[test]
fn angles_are_rounded_once_even_far_out() {
    let frequencies = frequencies(64, 50_000.0, Scaling::None, None);
    let positions = [0, 1, 4096, 131_071, 262_143];
    let (mut cos, mut sin) = (vec![0.0; 5 * 32], vec![0.0; 5 * 32]);
    angles(&positions, &frequencies, 1.5, &mut cos, &mut sin);
    for (t, position) in positions.iter().enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(*position) * frequency;
            assert!((f64::from(cos[t * 32 + i]) - 1.5 * angle.cos()).abs() < 1e-7);
            assert!((f64::from(sin[t * 32 + i]) - 1.5 * angle.sin()).abs() < 1e-7);
        }
    }
}

#[test]
fn pieces_turn_by_their_rows_angles() {
    let mut random = Random::new(1);
    let segments = Segments { per_row: 5, stride: 24, offset: 16, len: 8 };
    let x = random.values(4 * segments.row_len());
    let positions = [3, 0, 77, 5000];
    let frequencies = frequencies(8, 10_000.0, Scaling::None, None);
    let (mut cos, mut sin) = (vec![0.0; 16], vec![0.0; 16]);
    angles(&positions, &frequencies, 1.0, &mut cos, &mut sin);
    for layout in [Layout::Pairs, Layout::Halves] {
        let mut first = None;
        for threads in [1, 2, 3] {
            let mut turned = x.clone();
            rope(&Pool::new(threads).unwrap(), layout, &mut turned, segments, &cos, &sin);
            for piece in 0..20 {
                let (before, after) = (segments.piece(&x, piece), segments.piece(&turned, piece));
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (a, b) = if layout == Layout::Pairs { (2 * i, 2 * i + 1) } else { (i, i + 4) };
                    let angle = f64::from(positions[piece / 5]) * frequency;
                    let (x, y) = (f64::from(before[a]), f64::from(before[b]));
                    assert!((f64::from(after[a]) - (x * angle.cos() - y * angle.sin())).abs() < 3e-7);
                    assert!((f64::from(after[b]) - (x * angle.sin() + y * angle.cos())).abs() < 3e-7);
                }
                let at = piece * 24;
                assert_eq!(turned[at..at + 16], x[at..at + 16], "what does not turn stays");
            }
            assert_eq!(*first.get_or_insert(bits(&turned)), bits(&turned));
        }
    }
}

#[test]
fn pieces_are_copied_to_their_places() {
    let from = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut to = [0.0; 8];
    let source = Segments { per_row: 1, stride: 3, offset: 1, len: 2 };
    copy_pieces(&from, source, &mut to, Segments { per_row: 2, stride: 4, offset: 2, len: 2 });
    assert_eq!(to, [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 5.0, 6.0]);
}
