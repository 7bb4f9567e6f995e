//! Builds GGUF files, version 3, little-endian.

use thiserror::Error;

use crate::error::GgufError;
use crate::ggml_type::GgmlType;
use crate::header::MAX_TENSORS;
use crate::metadata::Metadata;
use crate::tensor::{MAX_NAME_BYTES, size};
use crate::value::{Array, Value, id};
use crate::{DEFAULT_ALIGNMENT, MAGIC, MAX_SHARDS};

/// Why a file can't be built.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WriteError {
    /// A tensor that no file could hold.
    #[error("the tensor `{name}` can't be written")]
    BadTensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Data of the wrong length.
    #[error("the tensor `{name}` takes {wanted} bytes, but {found} were given")]
    WrongLength {
        /// The tensor.
        name: String,
        /// What its shape and type need.
        wanted: u64,
        /// What was given.
        found: u64,
    },
    /// A tensor that was declared without data.
    #[error("the tensor `{name}` has no data; only the header can be written")]
    NoData {
        /// The tensor.
        name: String,
    },
    /// A key that the writer sets itself.
    #[error("`{key}` is set by the writer; {instead}")]
    OwnKey {
        /// The key.
        key: &'static str,
        /// How to set it.
        instead: &'static str,
    },
    /// More files than tensors, or too many of either.
    #[error("{tensors} tensors can't be written to {files} files")]
    BadSplit {
        /// How many tensors there are.
        tensors: usize,
        /// How many files were asked for.
        files: usize,
    },
    /// The file came out unreadable: two tensors of one name, say.
    #[error("the file would not be readable")]
    Unreadable {
        /// What the reader says.
        source: GgufError,
    },
}

/// Collects metadata and tensors, then writes them as one file or several.
///
/// Small and complete rather than fast: the file is built in memory. A tensor without data serves to write
/// the header of a model too large to hold.
#[derive(Debug, Clone)]
pub struct Writer {
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<Draft>,
}

#[derive(Debug, Clone)]
struct Draft {
    name: String,
    shape: Vec<u64>,
    ty: GgmlType,
    data: Option<Vec<u8>>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// An empty file, aligned to [`DEFAULT_ALIGNMENT`].
    pub fn new() -> Writer {
        Writer { alignment: DEFAULT_ALIGNMENT, metadata: Metadata::default(), tensors: Vec::new() }
    }

    /// Sets where tensors may start: a power of two from 8 to 1 MiB.
    pub fn alignment(&mut self, bytes: u32) -> &mut Writer {
        self.alignment = bytes.into();
        self
    }

    /// Sets a metadata key; the last call for a key wins.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Writer {
        self.metadata.insert(key, value);
        self
    }

    /// Adds a tensor: its shape in ggml's order (the contiguous dimension first), and its bytes in the type's
    /// layout.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: &[u64],
        ty: GgmlType,
        data: Vec<u8>,
    ) -> &mut Writer {
        self.tensors.push(Draft { name: name.into(), shape: shape.to_vec(), ty, data: Some(data) });
        self
    }

    /// Adds an f32 tensor.
    pub fn f32_tensor(&mut self, name: impl Into<String>, shape: &[u64], values: &[f32]) -> &mut Writer {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, shape, GgmlType::F32, data)
    }

    /// Adds a tensor without its data, for [`header`](Self::header).
    pub fn declare(&mut self, name: impl Into<String>, shape: &[u64], ty: GgmlType) -> &mut Writer {
        self.tensors.push(Draft { name: name.into(), shape: shape.to_vec(), ty, data: None });
        self
    }

    /// The file.
    ///
    /// # Errors
    /// When something can't be written, or the reader would refuse the file.
    pub fn finish(&self) -> Result<Vec<u8>, WriteError> {
        self.check_own_keys()?;
        let file = self.write(&self.metadata, &self.tensors, true)?;
        Ok(file.bytes)
    }

    /// The header alone, and the length that the whole file would have.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish), but tensors need no data.
    pub fn header(&self) -> Result<(Vec<u8>, u64), WriteError> {
        self.check_own_keys()?;
        let file = self.write(&self.metadata, &self.tensors, false)?;
        Ok((file.bytes, file.len))
    }

    /// The model as `files` files of about as many tensors each. All metadata goes to the first.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish), and when there are fewer tensors than files.
    pub fn finish_shards(&self, files: usize) -> Result<Vec<Vec<u8>>, WriteError> {
        Ok(self.shards(files, true)?.into_iter().map(|file| file.bytes).collect())
    }

    /// The headers alone of the same files, each with the length that its file would have.
    ///
    /// # Errors
    /// As for [`finish_shards`](Self::finish_shards), but tensors need no data.
    pub fn header_shards(&self, files: usize) -> Result<Vec<(Vec<u8>, u64)>, WriteError> {
        Ok(self.shards(files, false)?.into_iter().map(|file| (file.bytes, file.len)).collect())
    }

    fn shards(&self, files: usize, with_data: bool) -> Result<Vec<Written>, WriteError> {
        self.check_own_keys()?;
        let tensors = self.tensors.len();
        if files == 0 || files > tensors || files > MAX_SHARDS || tensors as u64 > MAX_TENSORS {
            return Err(WriteError::BadSplit { tensors, files });
        }
        (0..files)
            .map(|file| {
                let mut metadata = if file == 0 { self.metadata.clone() } else { Metadata::default() };
                metadata.insert("split.no", file as u16);
                metadata.insert("split.count", files as u16);
                metadata.insert("split.tensors.count", tensors as i32);
                let part = &self.tensors[tensors * file / files..tensors * (file + 1) / files];
                self.write(&metadata, part, with_data)
            })
            .collect()
    }

    fn check_own_keys(&self) -> Result<(), WriteError> {
        match OWN_KEYS.iter().find(|(key, _)| self.metadata.contains(key)) {
            Some(&(key, instead)) => Err(WriteError::OwnKey { key, instead }),
            None => Ok(()),
        }
    }

    fn write(&self, metadata: &Metadata, tensors: &[Draft], with_data: bool) -> Result<Written, WriteError> {
        let says_alignment = self.alignment != DEFAULT_ALIGNMENT;
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64 + u64::from(says_alignment)).to_le_bytes());
        if says_alignment {
            put_string(&mut out, "general.alignment");
            put_value(&mut out, &Value::U32(self.alignment as u32));
        }
        for (key, value) in metadata.iter() {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let mut end = 0u64;
        let mut places = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let bytes = tensor.bytes(with_data)?;
            let too_large = || WriteError::BadTensor {
                name: tensor.name.clone(),
                source: GgufError::TensorTooLarge { name: tensor.name.clone() },
            };
            let offset = end.checked_next_multiple_of(self.alignment.max(1)).ok_or_else(too_large)?;
            end = offset.checked_add(bytes).ok_or_else(too_large)?;
            places.push(offset);
            put_string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.ty.id().to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        let data_offset = (out.len() as u64).next_multiple_of(self.alignment.max(1));
        out.resize(data_offset as usize, 0);
        let len = data_offset.saturating_add(end);
        // The reader is the judge of what a file may hold, alignment and duplicate names included.
        crate::Header::parse(&out, len).map_err(|source| WriteError::Unreadable { source })?;
        if with_data {
            for (tensor, offset) in tensors.iter().zip(places) {
                let data = tensor.data.as_deref().unwrap_or_default();
                out.resize((data_offset + offset) as usize, 0);
                out.extend(data);
            }
        }
        Ok(Written { bytes: out, len })
    }
}

/// Keys that follow from other calls, and which.
const OWN_KEYS: [(&str, &str); 4] = [
    ("general.alignment", "call `alignment`"),
    ("split.no", "call `finish_shards`"),
    ("split.count", "call `finish_shards`"),
    ("split.tensors.count", "call `finish_shards`"),
];

struct Written {
    bytes: Vec<u8>,
    /// With all tensors, even where `bytes` is only the header.
    len: u64,
}

impl Draft {
    /// The bytes that the shape and type need; checked against the data where there must be some.
    fn bytes(&self, with_data: bool) -> Result<u64, WriteError> {
        let bad = |source| WriteError::BadTensor { name: self.name.clone(), source };
        let name = || self.name.clone();
        if self.name.len() as u64 > MAX_NAME_BYTES || self.name.is_empty() {
            return Err(bad(GgufError::BadNameLength {
                what: "the name",
                at: 0,
                len: self.name.len() as u64,
                limit: MAX_NAME_BYTES,
            }));
        }
        let mut dims = [1; 4];
        if self.shape.is_empty() || self.shape.len() > dims.len() {
            return Err(bad(GgufError::BadRank { name: name(), rank: self.shape.len() as u32 }));
        }
        if let Some(axis) = self.shape.iter().position(|&dim| dim == 0) {
            return Err(bad(GgufError::ZeroDimension { name: name(), axis }));
        }
        dims[..self.shape.len()].copy_from_slice(&self.shape);
        let wanted = size(&self.name, dims, self.ty).map_err(bad)?;
        match &self.data {
            None if with_data => Err(WriteError::NoData { name: name() }),
            Some(data) if data.len() as u64 != wanted => {
                Err(WriteError::WrongLength { name: name(), wanted, found: data.len() as u64 })
            }
            _ => Ok(wanted),
        }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(id::U8, &v.to_le_bytes()),
        Value::I8(v) => put(id::I8, &v.to_le_bytes()),
        Value::U16(v) => put(id::U16, &v.to_le_bytes()),
        Value::I16(v) => put(id::I16, &v.to_le_bytes()),
        Value::U32(v) => put(id::U32, &v.to_le_bytes()),
        Value::I32(v) => put(id::I32, &v.to_le_bytes()),
        Value::F32(v) => put(id::F32, &v.to_le_bytes()),
        Value::Bool(v) => put(id::BOOL, &[u8::from(*v)]),
        Value::U64(v) => put(id::U64, &v.to_le_bytes()),
        Value::I64(v) => put(id::I64, &v.to_le_bytes()),
        Value::F64(v) => put(id::F64, &v.to_le_bytes()),
        Value::String(text) => {
            put(id::STRING, &[]);
            put_string(out, text);
        }
        Value::Array(array) => {
            put(id::ARRAY, &[]);
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn put<T: Copy, const N: usize>(out: &mut Vec<u8>, id: u32, values: &[T], encode: fn(T) -> [u8; N]) {
        out.extend(id.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|&value| encode(value)));
    }
    match array {
        Array::U8(values) => put(out, id::U8, values, u8::to_le_bytes),
        Array::I8(values) => put(out, id::I8, values, i8::to_le_bytes),
        Array::U16(values) => put(out, id::U16, values, u16::to_le_bytes),
        Array::I16(values) => put(out, id::I16, values, i16::to_le_bytes),
        Array::U32(values) => put(out, id::U32, values, u32::to_le_bytes),
        Array::I32(values) => put(out, id::I32, values, i32::to_le_bytes),
        Array::F32(values) => put(out, id::F32, values, f32::to_le_bytes),
        Array::Bool(values) => put(out, id::BOOL, values, |value| [u8::from(value)]),
        Array::U64(values) => put(out, id::U64, values, u64::to_le_bytes),
        Array::I64(values) => put(out, id::I64, values, i64::to_le_bytes),
        Array::F64(values) => put(out, id::F64, values, f64::to_le_bytes),
        Array::String(strings) => {
            out.extend(id::STRING.to_le_bytes());
            out.extend((strings.len() as u64).to_le_bytes());
            strings.iter().for_each(|string| put_string(out, string));
        }
    }
}
