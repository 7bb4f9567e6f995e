//! The GGUF file format: bytes in, values out. Nothing here opens, maps or fetches a file.
//!
//! [`Header::parse`] reads a header from the first bytes of a file and says [`GgufError::Incomplete`] when it
//! needs more of them, so the same code serves a mapped file and a range request. Whatever it returns has
//! been checked: every tensor lies inside the file, aligned, and apart from every other. [`ShardSet`] does
//! the same across the files of a split model. [`Writer`] builds files.
//!
//! ```
//! use tandem_gguf::{GgmlType, Header, Writer};
//!
//! let mut writer = Writer::new();
//! writer.set("general.architecture", "llama").set("llama.block_count", 2u32);
//! writer.tensor("output_norm.weight", &[4], GgmlType::F32, vec![0; 16]);
//! let file = writer.finish()?;
//!
//! let header = Header::parse(&file, file.len() as u64)?;
//! assert_eq!(header.metadata.get::<&str>("general.architecture")?, "llama");
//! let norm = &header.tensors[0];
//! assert_eq!(file[norm.range_in_memory()?].len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cursor;
mod error;
mod ggml_type;
mod header;
mod metadata;
mod shards;
mod tensor;
mod value;
mod writer;

pub use error::GgufError;
pub use ggml_type::{GgmlType, RowError};
pub use header::{Header, MAX_HEADER_BYTES, MAX_METADATA, MAX_TENSORS};
pub use metadata::{FromValue, Metadata, MetadataError};
pub use shards::{MAX_SHARDS, ShardError, ShardSet, shard_names};
pub use tensor::TensorInfo;
pub use value::{Array, StringArray, Value};
pub use writer::{WriteError, Writer};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Where a file doesn't say `general.alignment`, tensors start at multiples of this many bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
