//! A model in several files: which names the files have, and whether together they are the whole model.

use std::collections::HashMap;

use thiserror::Error;

use crate::header::Header;
use crate::metadata::{Metadata, MetadataError};
use crate::tensor::TensorInfo;

/// The most files that one model may have. Kimi K2 in BF16 has about 50.
pub const MAX_SHARDS: usize = 1024;

/// Why files don't make up a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShardError {
    /// Not the bare name of a file.
    #[error("{name:?} is not a plain file name")]
    NotAFileName {
        /// The name.
        name: String,
    },
    /// A split model must be named by its first file.
    #[error("`{name}` is file {number} of its model; name the first one, `{first}`")]
    NotTheFirst {
        /// The name.
        name: String,
        /// Its number, from 1.
        number: u32,
        /// What the first one is called.
        first: String,
    },
    /// A name like `x-00004-of-00003.gguf`.
    #[error("`{name}` says that it is file {number} of {count}")]
    ImpossibleNumber {
        /// The name.
        name: String,
        /// The file's number.
        number: u32,
        /// How many files there are.
        count: u32,
    },
    /// More files than any real model has.
    #[error("the model claims {count} files, more than {MAX_SHARDS}")]
    TooMany {
        /// The claim.
        count: u64,
    },
    /// No file was given.
    #[error("a model needs at least one file")]
    NoFiles,
    /// A `split.*` key holds nonsense.
    #[error("file {file} of the model has unusable split metadata")]
    BadSplitMetadata {
        /// Which file, from 1 in the order given.
        file: usize,
        /// What is wrong.
        source: MetadataError,
    },
    /// The files are fewer or more than the model has.
    #[error("file {file} says that the model has {expected} files, but {given} were given")]
    WrongCount {
        /// Which file, from 1 in the order given.
        file: usize,
        /// How many files it says there are.
        expected: u64,
        /// How many were given.
        given: usize,
    },
    /// A file that is not where it belongs.
    #[error(
        "file {file} says that it is number {found} of the model (from 0): the files are out of order, or of different models"
    )]
    OutOfOrder {
        /// Which file, from 1 in the order given.
        file: usize,
        /// The number that it gives itself, from 0.
        found: u64,
    },
    /// The files hold fewer or more tensors than the model has.
    #[error("file {file} says that the model has {expected} tensors, but its files have {found}")]
    WrongTensorCount {
        /// Which file says so, from 1 in the order given.
        file: usize,
        /// The claim.
        expected: u64,
        /// What the files have.
        found: u64,
    },
    /// A tensor in two files.
    #[error("the tensor `{name}` is in file {first} and again in file {second}")]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The first file that has it, from 1.
        first: usize,
        /// The second.
        second: usize,
    },
}

/// The names of all files of the model whose first file has this name, in order.
///
/// `x-00001-of-00003.gguf` gives three names, any other name gives itself. The argument must be a file's bare
/// name, and so are the results: joined to the first file's folder they can't leave it.
///
/// # Errors
/// When the name is not a bare file name, or not a model's first file.
pub fn shard_names(first: &str) -> Result<Vec<String>, ShardError> {
    let plain = !first.is_empty()
        && first != "."
        && first != ".."
        && !first.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control());
    if !plain {
        return Err(ShardError::NotAFileName { name: first.to_owned() });
    }
    let Some((stem, number, count)) = split_name(first) else { return Ok(vec![first.to_owned()]) };
    if number == 0 || number > count {
        return Err(ShardError::ImpossibleNumber { name: first.to_owned(), number, count });
    }
    let name = |number: u32| format!("{stem}-{number:05}-of-{count:05}.gguf");
    if number != 1 {
        return Err(ShardError::NotTheFirst { name: first.to_owned(), number, first: name(1) });
    }
    if count as usize > MAX_SHARDS {
        return Err(ShardError::TooMany { count: count.into() });
    }
    Ok((1..=count).map(name).collect())
}

/// `x-00002-of-00003.gguf` → (`x`, 2, 3).
fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five_digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    Some((stem, five_digits(number)?, five_digits(count)?))
}

/// All files of one model: complete, in order, and without a tensor that occurs twice.
#[derive(Debug, Clone)]
pub struct ShardSet {
    headers: Vec<Header>,
    /// Name → file and position in it.
    index: HashMap<String, (usize, usize)>,
}

impl ShardSet {
    /// Puts the headers of a model's files together, given in the files' order. A model in one file is a set
    /// of one.
    ///
    /// # Errors
    /// When a file is missing, superfluous or out of order, or a tensor is missing or occurs twice.
    pub fn assemble(headers: Vec<Header>) -> Result<ShardSet, ShardError> {
        if headers.is_empty() {
            return Err(ShardError::NoFiles);
        }
        if headers.len() > MAX_SHARDS {
            return Err(ShardError::TooMany { count: headers.len() as u64 });
        }
        let given = headers.len();
        let found = headers.iter().map(|header| header.tensors.len() as u64).sum();
        for (position, header) in headers.iter().enumerate() {
            let file = position + 1;
            let split = |key: &str| {
                header
                    .metadata
                    .find::<u64>(key)
                    .map_err(|source| ShardError::BadSplitMetadata { file, source })
            };
            // Files that were never split have none of the keys, or a count of zero.
            let expected = split("split.count")?.unwrap_or(0).max(1);
            if expected != given as u64 {
                return Err(ShardError::WrongCount { file, expected, given });
            }
            let number = split("split.no")?.unwrap_or(0);
            if number != position as u64 {
                return Err(ShardError::OutOfOrder { file, found: number });
            }
            match split("split.tensors.count")? {
                Some(expected) if expected != found => {
                    return Err(ShardError::WrongTensorCount { file, expected, found });
                }
                _ => {}
            }
        }
        let mut index = HashMap::with_capacity(headers.iter().map(|header| header.tensors.len()).sum());
        for (file, header) in headers.iter().enumerate() {
            for (position, tensor) in header.tensors.iter().enumerate() {
                if let Some((first, _)) = index.insert(tensor.name.clone(), (file, position)) {
                    let name = tensor.name.clone();
                    return Err(ShardError::DuplicateTensor { name, first: first + 1, second: file + 1 });
                }
            }
        }
        Ok(ShardSet { headers, index })
    }

    /// The model's metadata: its first file's.
    pub fn metadata(&self) -> &Metadata {
        &self.headers[0].metadata
    }

    /// The headers in the files' order.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// The tensor of this name, and which file (from 0) holds it.
    pub fn tensor(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let &(file, position) = self.index.get(name)?;
        Some((file, &self.headers[file].tensors[position]))
    }

    /// All tensors in file order, each with its file's number from 0.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.headers
            .iter()
            .enumerate()
            .flat_map(|(file, header)| header.tensors.iter().map(move |tensor| (file, tensor)))
    }

    /// The bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().map(|(_, tensor)| tensor.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_shard_names_its_siblings() {
        let names = shard_names("kimi-UD-Q2_K_XL-00001-of-00003.gguf").unwrap();
        assert_eq!(
            names,
            [
                "kimi-UD-Q2_K_XL-00001-of-00003.gguf",
                "kimi-UD-Q2_K_XL-00002-of-00003.gguf",
                "kimi-UD-Q2_K_XL-00003-of-00003.gguf"
            ]
        );
        assert_eq!(shard_names("tiny.gguf").unwrap(), ["tiny.gguf"]);
        assert_eq!(shard_names("a-1-of-3.gguf").unwrap(), ["a-1-of-3.gguf"]);
    }

    #[test]
    fn path_traversal_in_a_shard_name_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x-00001-of-00002.gguf",
            "/etc/x-00001-of-00002.gguf",
            "a/../../x-00001-of-00002.gguf",
            "..\\x-00001-of-00002.gguf",
            "C:x-00001-of-00002.gguf",
            "x\0-00001-of-00002.gguf",
            "x\n-00001-of-00002.gguf",
        ] {
            assert_eq!(
                shard_names(name),
                Err(ShardError::NotAFileName { name: name.to_owned() }),
                "{name:?}"
            );
        }
    }

    #[test]
    fn impossible_shard_numbers_are_refused() {
        let error = shard_names("x-00002-of-00003.gguf").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`x-00002-of-00003.gguf` is file 2 of its model; name the first one, `x-00001-of-00003.gguf`"
        );
        assert!(matches!(shard_names("x-00000-of-00003.gguf"), Err(ShardError::ImpossibleNumber { .. })));
        assert!(matches!(shard_names("x-00004-of-00003.gguf"), Err(ShardError::ImpossibleNumber { .. })));
        assert!(matches!(shard_names("x-00001-of-00000.gguf"), Err(ShardError::ImpossibleNumber { .. })));
        assert_eq!(shard_names("x-00001-of-99999.gguf"), Err(ShardError::TooMany { count: 99_999 }));
        assert_eq!(shard_names("x-00001-of-1+003.gguf").unwrap().len(), 1);
    }
}
