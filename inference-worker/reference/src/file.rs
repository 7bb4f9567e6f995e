//! Generated models as GGUF files, and the weights of f32 files back.

use tandem_gguf::{GgmlType, Header, Writer};

use crate::Reference;
use crate::tensor::{Tensor, Weights};

/// A tensor's values as a file holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The element type.
    pub ty: GgmlType,
    /// The values in that type's layout.
    pub bytes: Vec<u8>,
}

/// The values unchanged.
pub fn as_f32(tensor: &Tensor) -> Encoded {
    Encoded { ty: GgmlType::F32, bytes: tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

/// A writer that holds the whole model, each tensor as `encode` gives it.
pub fn writer(shape: &dyn Reference, weights: &Weights, encode: &dyn Fn(&str, &Tensor) -> Encoded) -> Writer {
    let mut writer = Writer::new();
    writer.set("general.architecture", shape.architecture());
    for (key, value) in shape.metadata() {
        writer.set(key, value);
    }
    for (name, tensor) in &weights.tensors {
        let dims: Vec<u64> = tensor.dims.iter().map(|&d| d as u64).collect();
        let Encoded { ty, bytes } = encode(name, tensor);
        writer.tensor(name.as_str(), &dims, ty, bytes);
    }
    writer
}

/// A model with weights of a seed, all f32, as the bytes of one file.
///
/// # Panics
/// When the shape can't be written: the generated ones can.
pub fn random_file(shape: &dyn Reference, seed: u64) -> Vec<u8> {
    let weights = shape.random_weights(seed);
    writer(shape, &weights, &|_, tensor| as_f32(tensor)).finish().expect("generated models are well-formed")
}

/// The weights of a file whose tensors are all f32.
///
/// # Panics
/// When the file can't be read or holds other types.
pub fn read_f32(file: &[u8]) -> Weights {
    let header = Header::parse(file, file.len() as u64).expect("the file is GGUF");
    let mut weights = Weights::default();
    for info in &header.tensors {
        assert_eq!(info.ty, GgmlType::F32, "{} is not f32", info.name);
        let bytes = &file[info.range_in_memory().expect("the file is in memory")];
        let values = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let dims = info.shape().iter().map(|&d| d as usize).collect();
        weights.insert(info.name.as_str(), Tensor { dims, values });
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deepseek2::Deepseek2;
    use crate::dense::Dense;

    #[test]
    fn weights_come_back_from_the_file_they_were_written_to() {
        let shapes: [&dyn Reference; 3] =
            [&Deepseek2::minute(), &Dense::llama().minute(), &Dense::qwen2().minute()];
        for shape in shapes {
            assert_eq!(read_f32(&random_file(shape, 3)), shape.random_weights(3));
        }
    }
}
