//! The element types of tensors: their ids in files, their names, and how many bytes a block of them takes.

use std::fmt;

use thiserror::Error;

/// Why a row has no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RowError {
    /// The type's blocks don't divide the row.
    #[error("a row of {elements} elements is not a whole number of {ty} blocks of {}", ty.block_len())]
    PartialBlock {
        /// The type.
        ty: GgmlType,
        /// The length of the row.
        elements: u64,
    },
    /// The row's bytes don't fit in 64 bits.
    #[error("a row of {elements} elements of {ty} takes more bytes than fit in 64 bits")]
    TooLong {
        /// The type.
        ty: GgmlType,
        /// The length of the row.
        elements: u64,
    },
}

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:literal elements, $bytes:literal bytes;)*) => {
        /// Every element type that a GGUF file may name, whether or not anything here can compute with it.
        ///
        /// The number is the type's id in files.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType {
            $($(#[$doc])* $variant = $id,)*
        }

        impl GgmlType {
            /// All types, by ascending id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant,)*];

            /// The type with this id, or none when the id is unknown or belongs to a type that was withdrawn.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id {
                    $($id => Some(GgmlType::$variant),)*
                    _ => None,
                }
            }

            /// The usual name, as in file names: `Q4_K`, `BF16`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$variant => $name,)*
                }
            }

            /// Elements in one block.
            pub const fn block_len(self) -> u64 {
                match self {
                    $(GgmlType::$variant => $block,)*
                }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(GgmlType::$variant => $bytes,)*
                }
            }
        }
    };
}

ggml_types! {
    /// IEEE single precision.
    F32 = 0, "F32", 1 elements, 4 bytes;
    /// IEEE half precision.
    F16 = 1, "F16", 1 elements, 2 bytes;
    /// f16 scale, 32 × 4 bits around 8.
    Q4_0 = 2, "Q4_0", 32 elements, 18 bytes;
    /// f16 scale and minimum, 32 × 4 bits.
    Q4_1 = 3, "Q4_1", 32 elements, 20 bytes;
    /// f16 scale, 32 × 5 bits around 16.
    Q5_0 = 6, "Q5_0", 32 elements, 22 bytes;
    /// f16 scale and minimum, 32 × 5 bits.
    Q5_1 = 7, "Q5_1", 32 elements, 24 bytes;
    /// f16 scale, 32 × int8.
    Q8_0 = 8, "Q8_0", 32 elements, 34 bytes;
    /// f16 scale and f16 scaled sum, 32 × int8: what activations become beside types with a minimum.
    Q8_1 = 9, "Q8_1", 32 elements, 36 bytes;
    /// Super-block of 16 × 16 weights of 2 bits.
    Q2K = 10, "Q2_K", 256 elements, 84 bytes;
    /// Super-block of 16 × 16 weights of 3 bits.
    Q3K = 11, "Q3_K", 256 elements, 110 bytes;
    /// Super-block of 8 × 32 weights of 4 bits.
    Q4K = 12, "Q4_K", 256 elements, 144 bytes;
    /// Super-block of 8 × 32 weights of 5 bits.
    Q5K = 13, "Q5_K", 256 elements, 176 bytes;
    /// Super-block of 16 × 16 weights of 6 bits.
    Q6K = 14, "Q6_K", 256 elements, 210 bytes;
    /// f32 scale, 256 × int8, 16 sums: what activations become beside the K types.
    Q8K = 15, "Q8_K", 256 elements, 292 bytes;
    /// About 2.06 bits a weight, from a codebook.
    IQ2XXS = 16, "IQ2_XXS", 256 elements, 66 bytes;
    /// About 2.31 bits a weight, from a codebook.
    IQ2XS = 17, "IQ2_XS", 256 elements, 74 bytes;
    /// About 3.06 bits a weight, from a codebook.
    IQ3XXS = 18, "IQ3_XXS", 256 elements, 98 bytes;
    /// About 1.56 bits a weight, from a codebook.
    IQ1S = 19, "IQ1_S", 256 elements, 50 bytes;
    /// f16 scale, 32 × 4 bits through a table of 16 values.
    IQ4NL = 20, "IQ4_NL", 32 elements, 18 bytes;
    /// About 3.44 bits a weight, from a codebook.
    IQ3S = 21, "IQ3_S", 256 elements, 110 bytes;
    /// About 2.56 bits a weight, from a codebook.
    IQ2S = 22, "IQ2_S", 256 elements, 82 bytes;
    /// Super-block of 8 × 32 weights of 4 bits through a table of 16 values.
    IQ4XS = 23, "IQ4_XS", 256 elements, 136 bytes;
    /// Signed bytes.
    I8 = 24, "I8", 1 elements, 1 bytes;
    /// 16-bit integers.
    I16 = 25, "I16", 1 elements, 2 bytes;
    /// 32-bit integers.
    I32 = 26, "I32", 1 elements, 4 bytes;
    /// 64-bit integers.
    I64 = 27, "I64", 1 elements, 8 bytes;
    /// IEEE double precision.
    F64 = 28, "F64", 1 elements, 8 bytes;
    /// About 1.75 bits a weight, from a codebook.
    IQ1M = 29, "IQ1_M", 256 elements, 56 bytes;
    /// The upper half of an f32.
    BF16 = 30, "BF16", 1 elements, 2 bytes;
    /// Ternary, 1.69 bits a weight.
    TQ1_0 = 34, "TQ1_0", 256 elements, 54 bytes;
    /// Ternary, 2.06 bits a weight.
    TQ2_0 = 35, "TQ2_0", 256 elements, 66 bytes;
    /// One shared exponent byte, 32 × 4-bit floats.
    MXFP4 = 39, "MXFP4", 32 elements, 17 bytes;
    /// Four 8-bit float scales, 64 × 4-bit floats.
    NVFP4 = 40, "NVFP4", 64 elements, 36 bytes;
    /// f16 scale, 128 signs.
    Q1_0 = 41, "Q1_0", 128 elements, 18 bytes;
    /// f16 scale, 64 × 2 bits.
    Q2_0 = 42, "Q2_0", 64 elements, 18 bytes;
}

impl GgmlType {
    /// The type's id in files.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The type whose [`name`](Self::name) this is, in any case.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        Self::ALL.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// The bytes of a row of `elements`.
    ///
    /// # Errors
    /// When the row is not a whole number of blocks, or its bytes don't fit in 64 bits.
    pub const fn row_bytes(self, elements: u64) -> Result<u64, RowError> {
        if !elements.is_multiple_of(self.block_len()) {
            return Err(RowError::PartialBlock { ty: self, elements });
        }
        match (elements / self.block_len()).checked_mul(self.block_bytes()) {
            Some(bytes) => Ok(bytes),
            None => Err(RowError::TooLong { ty: self, elements }),
        }
    }

    /// The name of a type that once had this id and was withdrawn from the format.
    pub(crate) const fn withdrawn(id: u32) -> Option<&'static str> {
        Some(match id {
            4 => "Q4_2",
            5 => "Q4_3",
            31 => "Q4_0_4_4",
            32 => "Q4_0_4_8",
            33 => "Q4_0_8_8",
            36 => "IQ4_NL_4_4",
            37 => "IQ4_NL_4_8",
            38 => "IQ4_NL_8_8",
            _ => return None,
        })
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_lead_back_to_their_type() {
        for &ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(GgmlType::from_name(&ty.name().to_lowercase()), Some(ty));
            assert_eq!(GgmlType::withdrawn(ty.id()), None);
        }
        assert_eq!(GgmlType::from_id(4), None);
        assert_eq!(GgmlType::from_id(43), None);
        assert_eq!(GgmlType::from_id(u32::MAX), None);
    }

    #[test]
    fn a_row_counts_whole_blocks() {
        assert_eq!(GgmlType::Q4K.row_bytes(512), Ok(288));
        assert_eq!(GgmlType::Q8_0.row_bytes(96), Ok(102));
        assert_eq!(GgmlType::F32.row_bytes(0), Ok(0));
        let partial = GgmlType::Q8_0.row_bytes(33).unwrap_err();
        assert_eq!(partial.to_string(), "a row of 33 elements is not a whole number of Q8_0 blocks of 32");
        assert!(matches!(GgmlType::F64.row_bytes(u64::MAX), Err(RowError::TooLong { .. })));
    }

    #[test]
    fn bits_per_weight_are_the_published_ones() {
        let bits = |ty: GgmlType| ty.block_bytes() as f64 * 8.0 / ty.block_len() as f64;
        assert_eq!(bits(GgmlType::Q2K), 2.625);
        assert_eq!(bits(GgmlType::Q3K), 3.4375);
        assert_eq!(bits(GgmlType::Q4K), 4.5);
        assert_eq!(bits(GgmlType::Q5K), 5.5);
        assert_eq!(bits(GgmlType::Q6K), 6.5625);
        assert_eq!(bits(GgmlType::IQ1S), 1.5625);
        assert_eq!(bits(GgmlType::IQ1M), 1.75);
        assert_eq!(bits(GgmlType::IQ4XS), 4.25);
        assert_eq!(bits(GgmlType::MXFP4), 4.25);
        assert_eq!(bits(GgmlType::NVFP4), 4.5);
    }
}
