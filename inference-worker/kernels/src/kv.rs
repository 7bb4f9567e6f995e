//! Rows of keys, values or latents kept per position, and their way to other workers.
//!
//! A pool is one layer's store, cut into pages of equal length; which pages a sequence has is the caller's. Position `p`
//! of a sequence lies in slot `pages[p / page_len] × page_len + p mod page_len`.

use crate::blocks::{f16_to_f32, f32_to_f16};

/// What a kept value is stored as; a part of a worker's `numerics_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// As computed, 4 bytes.
    F32,
    /// Rounded to the nearest half, ties to even, 2 bytes.
    F16,
}

impl KvType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Exported rows that do not fit the pool they should go into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Not the bytes of that many rows.
    #[error(
        "{slots} cache rows take {expected} bytes, but {actual} came; the sender's model or cache type differs"
    )]
    WrongSize {
        /// Rows to be written.
        slots: usize,
        /// Bytes they take here.
        expected: usize,
        /// Bytes that came.
        actual: usize,
    },
}

/// One layer's rows.
#[derive(Debug)]
pub struct KvPool {
    row_len: usize,
    page_len: usize,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

impl KvPool {
    /// Room for `pages × page_len` rows of `row_len` values, all zero.
    pub fn new(ty: KvType, pages: usize, page_len: usize, row_len: usize) -> Self {
        assert!(page_len > 0 && row_len > 0, "pages and rows of a cache have a length");
        let values = pages * page_len * row_len;
        let rows = match ty {
            KvType::F32 => Rows::F32(vec![0.0; values]),
            KvType::F16 => Rows::F16(vec![0; values]),
        };
        Self { row_len, page_len, rows }
    }

    /// The bytes that `new` allocates.
    pub fn bytes(ty: KvType, pages: usize, page_len: usize, row_len: usize) -> usize {
        pages * page_len * row_len * ty.bytes()
    }

    /// The type of a kept value.
    pub fn ty(&self) -> KvType {
        match self.rows {
            Rows::F32(_) => KvType::F32,
            Rows::F16(_) => KvType::F16,
        }
    }

    /// Values in a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Rows in a page.
    pub fn page_len(&self) -> usize {
        self.page_len
    }

    /// Rows in the pool.
    pub fn slots(&self) -> usize {
        let values = match &self.rows {
            Rows::F32(values) => values.len(),
            Rows::F16(values) => values.len(),
        };
        values / self.row_len
    }

    /// The slot of a position in a sequence that has these pages. Panics when the pages do not reach so far.
    #[inline(always)]
    pub fn slot(&self, pages: &[u32], position: usize) -> usize {
        pages[position / self.page_len] as usize * self.page_len + position % self.page_len
    }

    /// Writes row `i` of `values` to slot `slots[i]`.
    pub fn store(&mut self, slots: &[u32], values: &[f32]) {
        let len = self.row_len;
        assert_eq!(values.len(), slots.len() * len, "the rows to keep are not slots × row length");
        for (slot, row) in slots.iter().zip(values.chunks_exact(len)) {
            let start = *slot as usize * len;
            match &mut self.rows {
                Rows::F32(values) => values[start..start + len].copy_from_slice(row),
                Rows::F16(values) => {
                    for (kept, value) in values[start..start + len].iter_mut().zip(row) {
                        *kept = f32_to_f16(*value);
                    }
                }
            }
        }
    }

    /// Reads `out.len()` values of a slot's row from `offset` on, as f32.
    #[inline(always)]
    pub fn load(&self, slot: usize, offset: usize, out: &mut [f32]) {
        assert!(offset + out.len() <= self.row_len, "a read beyond a row of the cache");
        let start = slot * self.row_len + offset;
        let end = start + out.len();
        match &self.rows {
            Rows::F32(values) => out.copy_from_slice(&values[start..end]),
            Rows::F16(values) => {
                for (out, half) in out.iter_mut().zip(&values[start..end]) {
                    *out = f16_to_f32(*half);
                }
            }
        }
    }

    /// Bytes of one exported row.
    pub fn row_bytes(&self) -> usize {
        self.row_len * self.ty().bytes()
    }

    /// Copies rows out as they are stored, little-endian, one after the other. Panics unless `out` is exactly
    /// `slots.len() × row_bytes()`.
    pub fn export(&self, slots: &[u32], out: &mut [u8]) {
        let bytes = self.row_bytes();
        assert_eq!(out.len(), slots.len() * bytes, "the output is not slots × row bytes");
        for (slot, out) in slots.iter().zip(out.chunks_exact_mut(bytes)) {
            let start = *slot as usize * self.row_len;
            match &self.rows {
                Rows::F32(values) => {
                    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&values[start..]) {
                        *out = value.to_le_bytes();
                    }
                }
                Rows::F16(values) => {
                    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(&values[start..]) {
                        *out = value.to_le_bytes();
                    }
                }
            }
        }
    }

    /// Takes exported rows in, bit for bit. Nothing is written unless all of it fits. Panics when a slot is outside the
    /// pool: slots are the receiver's own choice.
    pub fn import(&mut self, slots: &[u32], bytes: &[u8]) -> Result<(), ImportError> {
        let row_bytes = self.row_bytes();
        let expected = slots.len() * row_bytes;
        if bytes.len() != expected {
            return Err(ImportError::WrongSize { slots: slots.len(), expected, actual: bytes.len() });
        }
        for (slot, row) in slots.iter().zip(bytes.chunks_exact(row_bytes)) {
            let start = *slot as usize * self.row_len;
            match &mut self.rows {
                Rows::F32(values) => {
                    for (value, bytes) in
                        values[start..start + self.row_len].iter_mut().zip(row.as_chunks().0)
                    {
                        *value = f32::from_le_bytes(*bytes);
                    }
                }
                Rows::F16(values) => {
                    for (value, bytes) in
                        values[start..start + self.row_len].iter_mut().zip(row.as_chunks().0)
                    {
                        *value = u16::from_le_bytes(*bytes);
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_travel_between_pools_bit_for_bit() {
        for ty in [KvType::F32, KvType::F16] {
            let mut here = KvPool::new(ty, 3, 4, 5);
            assert_eq!((here.slots(), here.row_bytes() * 12), (12, KvPool::bytes(ty, 3, 4, 5)));
            let rows: Vec<f32> = (0..10).map(|i| i as f32 * 0.3 - 1.1).collect();
            here.store(&[7, 2], &rows);
            let mut wire = vec![0; 2 * here.row_bytes()];
            here.export(&[7, 2], &mut wire);
            let mut there = KvPool::new(ty, 5, 2, 5);
            there.import(&[0, 9], &wire).unwrap();
            let (mut a, mut b) = ([0.0; 3], [0.0; 3]);
            for (slot, other, row) in [(7, 0, &rows[..5]), (2, 9, &rows[5..])] {
                here.load(slot, 2, &mut a);
                there.load(other, 2, &mut b);
                assert_eq!(a, b);
                for (kept, value) in a.iter().zip(&row[2..]) {
                    assert!((kept - value).abs() <= if ty == KvType::F32 { 0.0 } else { 5e-4 });
                }
            }
            let refused = there.import(&[1], &wire).unwrap_err();
            assert!(matches!(refused, ImportError::WrongSize { slots: 1, .. }));
            there.load(1, 0, &mut b);
            assert_eq!(b, [0.0; 3]);
        }
    }

    #[test]
    fn positions_find_their_slots_through_pages() {
        let pool = KvPool::new(KvType::F16, 8, 4, 1);
        assert_eq!([0, 3, 4, 9].map(|p| pool.slot(&[6, 1, 3], p)), [24, 27, 4, 13]);
    }
}
