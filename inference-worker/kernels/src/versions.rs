//! One body compiled for several instruction sets, chosen when it runs.
//!
//! The copies have equal bits: integer arithmetic is exact, and the compiler neither reorders nor fuses f32 operations
//! whatever instructions it may use. Only `#[inline(always)]` functions may be called inside a body, else they keep the
//! baseline's instructions.

/// Declares a function in two versions on x86-64: the baseline and AVX2. A third for AVX-512 gave no speed as long as the
/// bodies are plain loops.
macro_rules! versions {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::versions::level() == $crate::versions::Level::Avx2 {
                    // SAFETY: the level says that this processor has the feature.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use versions;

/// The instruction sets that bodies are compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the target guarantees.
    Baseline,
    /// 256-bit integers and floats.
    Avx2,
}

/// The best level of this processor.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    if std::is_x86_feature_detected!("avx2") { Level::Avx2 } else { Level::Baseline }
}

#[cfg(test)]
pub(crate) mod tests;
