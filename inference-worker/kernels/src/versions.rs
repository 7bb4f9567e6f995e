//! One body compiled for several instruction sets, chosen when it runs.
//!
//! The copies have equal bits: integer arithmetic is exact, and the compiler neither reorders nor fuses f32 operations
//! whatever instructions it may use. Only `#[inline(always)]` functions may be called inside a body, else they keep the
//! baseline's instructions.

/// Declares a function in three versions on x86-64: the baseline, AVX2, and AVX-512 with bytes and words.
macro_rules! versions {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$(const $const:ident : $const_ty:ty),+>)? ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$doc])*
        $vis fn $name $(<$(const $const: $const_ty),+>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$(const $const: $const_ty),+>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$(const $const: $const_ty),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$($const),+>)? ($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                fn avx512 $(<$(const $const: $const_ty),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    body $(::<$($const),+>)? ($($arg),*)
                }
                match $crate::versions::level() {
                    // SAFETY: the level says that this processor has the features.
                    $crate::versions::Level::Avx512 => return unsafe { avx512 $(::<$($const),+>)? ($($arg),*) },
                    // SAFETY: as above.
                    $crate::versions::Level::Avx2 => return unsafe { avx2 $(::<$($const),+>)? ($($arg),*) },
                    $crate::versions::Level::Baseline => {}
                }
            }
            body $(::<$($const),+>)? ($($arg),*)
        }
    };
}
pub(crate) use versions;

/// The instruction sets that bodies are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "chosen among on x86-64 only"))]
pub(crate) enum Level {
    /// What the target guarantees.
    Baseline,
    /// 256-bit integers.
    Avx2,
    /// 512-bit, with byte and word operations.
    Avx512,
}

/// The best level of this processor.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    if std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vl") {
        Level::Avx512
    } else if std::is_x86_feature_detected!("avx2") {
        Level::Avx2
    } else {
        Level::Baseline
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests {
    use super::Level;
    use std::cell::Cell;

    thread_local! {
        /// Set by tests to hold the versions against each other on one thread.
        pub(crate) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs `work` once per level that this processor has, on the calling thread.
    pub(crate) fn at_each_level<R>(mut work: impl FnMut() -> R) -> Vec<R> {
        FORCED.set(None);
        let best = super::level();
        let mut results = Vec::new();
        for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
            if level == Level::Avx512 && best != Level::Avx512
                || level == Level::Avx2 && best == Level::Baseline
            {
                continue;
            }
            FORCED.set(Some(level));
            results.push(work());
        }
        FORCED.set(None);
        results
    }
}
