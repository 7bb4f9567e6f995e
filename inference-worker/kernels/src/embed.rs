//! Token ids to rows of the embedding table.

use crate::blocks::dequantise_row;
use crate::pool::Pool;
use crate::weights::WeightMatrix;

/// `out[i]` becomes row `ids[i]` of the table, dequantised; nothing is added. Panics when an id is not below the table's
/// rows: the caller refuses such ids when they come in.
pub fn embed(pool: &Pool, table: &WeightMatrix<'_>, ids: &[u32], out: &mut [f32]) {
    assert_eq!(out.len(), ids.len() * table.cols(), "the output is not ids × embedding length");
    pool.for_rows(out, table.cols(), table.cols(), |i, out| {
        let id = ids[i] as usize;
        assert!(id < table.rows(), "token id {id} is outside a vocabulary of {}", table.rows());
        dequantise_row(table.ty(), table.row(id), out);
    });
}
