//! What is written is read back; what is damaged is refused, and never more than that.

use proptest::collection::vec;
use proptest::prelude::*;
use tandem_gguf::{Array, GgmlType, GgufError, Header, ShardSet, Value, WriteError, Writer};

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        proptest::num::f32::NORMAL.prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
    ]
}

fn array() -> impl Strategy<Value = Value> {
    prop_oneof![
        vec(any::<u8>(), 0..20).prop_map(Value::from),
        vec(any::<i8>(), 0..20).prop_map(Value::from),
        vec(any::<u16>(), 0..20).prop_map(Value::from),
        vec(any::<i16>(), 0..20).prop_map(Value::from),
        vec(any::<u32>(), 0..20).prop_map(Value::from),
        vec(any::<i32>(), 0..20).prop_map(Value::from),
        vec(any::<u64>(), 0..20).prop_map(Value::from),
        vec(any::<i64>(), 0..20).prop_map(Value::from),
        vec(proptest::num::f32::NORMAL, 0..20).prop_map(Value::from),
        vec(proptest::num::f64::NORMAL, 0..20).prop_map(Value::from),
        vec(any::<bool>(), 0..20).prop_map(Value::from),
        vec(any::<String>(), 0..20).prop_map(|texts| Value::Array(Array::String(texts.iter().collect()))),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![number(), array(), any::<String>().prop_map(Value::from)]
}

#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<u64>,
    ty: GgmlType,
    data: Vec<u8>,
}

fn tensor() -> impl Strategy<Value = Tensor> {
    let shape = (1..3u64, vec(1..4u64, 0..=3));
    (proptest::sample::select(GgmlType::ALL), shape, any::<u8>()).prop_map(|(ty, (blocks, more), fill)| {
        let shape: Vec<u64> = std::iter::once(blocks * ty.block_len()).chain(more).collect();
        let rows: u64 = shape[1..].iter().product();
        let bytes = ty.row_bytes(shape[0]).expect("rows are whole blocks") * rows;
        Tensor { shape, ty, data: vec![fill; bytes as usize] }
    })
}

#[derive(Debug, Clone)]
struct Model {
    alignment: u32,
    metadata: Vec<Value>,
    tensors: Vec<Tensor>,
}

fn model() -> impl Strategy<Value = Model> {
    let alignment = proptest::sample::select(vec![8, 32, 64, 4096]);
    let metadata = vec(value(), 0..8);
    let tensors = vec(tensor(), 0..6);
    (alignment, metadata, tensors).prop_map(|(alignment, metadata, tensors)| Model {
        alignment,
        metadata,
        tensors,
    })
}

impl Model {
    fn writer(&self) -> Writer {
        let mut writer = Writer::new();
        writer.alignment(self.alignment);
        for (at, value) in self.metadata.iter().enumerate() {
            writer.set(format!("key.{at}"), value.clone());
        }
        for (at, tensor) in self.tensors.iter().enumerate() {
            writer.tensor(format!("tensor.{at}"), &tensor.shape, tensor.ty, tensor.data.clone());
        }
        writer
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(model in model()) {
        let file = model.writer().finish().unwrap();
        let header = Header::parse(&file, file.len() as u64).unwrap();
        prop_assert_eq!(header.alignment, u64::from(model.alignment));
        for (at, value) in model.metadata.iter().enumerate() {
            prop_assert_eq!(header.metadata.value(&format!("key.{at}")), Some(value));
        }
        prop_assert_eq!(header.tensors.len(), model.tensors.len());
        for (at, expected) in model.tensors.iter().enumerate() {
            let tensor = header.tensor(&format!("tensor.{at}")).unwrap();
            prop_assert_eq!(tensor.shape(), &*expected.shape);
            prop_assert_eq!(tensor.ty, expected.ty);
            prop_assert_eq!(tensor.offset % header.alignment, 0);
            prop_assert_eq!(tensor.row_bytes() * tensor.rows(), tensor.bytes);
            prop_assert_eq!(&file[tensor.range_in_memory().unwrap()], &*expected.data);
        }
        let (header_bytes, len) = model.writer().header().unwrap();
        prop_assert_eq!(len, file.len() as u64);
        prop_assert_eq!(Header::parse(&header_bytes, len).unwrap(), header);
    }

    #[test]
    fn shards_hold_what_one_file_holds(model in model(), files in 1..4usize) {
        prop_assume!(files <= model.tensors.len());
        let files = model.writer().finish_shards(files).unwrap();
        let headers = files.iter().map(|file| Header::parse(file, file.len() as u64).unwrap()).collect();
        let set = ShardSet::assemble(headers).unwrap();
        prop_assert_eq!(set.tensors().count(), model.tensors.len());
        for (at, expected) in model.tensors.iter().enumerate() {
            let (file, tensor) = set.tensor(&format!("tensor.{at}")).unwrap();
            prop_assert_eq!(&files[file][tensor.range_in_memory().unwrap()], &*expected.data);
        }
    }

    /// Whatever comes out of a damaged file has been checked like any other.
    #[test]
    fn damaged_files_never_panic(
        model in model(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = model.writer().finish().unwrap();
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        prop_assert!(is_sound(&file, file.len() as u64));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400), file_len in any::<u64>()) {
        prop_assert!(is_sound(&bytes, file_len));
        let headed = [b"GGUF\x03\0\0\0".as_slice(), &bytes].concat();
        prop_assert!(is_sound(&headed, headed.len() as u64));
        prop_assert!(is_sound(&headed, file_len));
    }
}

/// Parses, and holds what came out to what a header promises.
fn is_sound(prefix: &[u8], file_len: u64) -> bool {
    match Header::parse(prefix, file_len) {
        Ok(header) => {
            let mut tensors = header.tensors.clone();
            tensors.sort_by_key(|tensor| tensor.offset);
            tensors.iter().all(|tensor| tensor.range().end <= file_len)
                && tensors.windows(2).all(|pair| pair[0].range().end <= pair[1].offset)
        }
        Err(GgufError::Incomplete { needed }) => needed > prefix.len() as u64 && needed <= file_len,
        Err(_) => true,
    }
}

#[test]
fn what_can_not_be_read_is_not_written() {
    let mut twice = Writer::new();
    twice.f32_tensor("t", &[1], &[0.0]).f32_tensor("t", &[1], &[0.0]);
    assert!(matches!(
        twice.finish(),
        Err(WriteError::Unreadable { source: GgufError::DuplicateTensor { .. } })
    ));
    let odd = |writer: &mut Writer| writer.finish().expect_err("the file can't be written");
    assert!(matches!(odd(Writer::new().alignment(48)), WriteError::Unreadable { .. }));
    assert!(matches!(odd(Writer::new().set("", 1u32)), WriteError::Unreadable { .. }));
    assert!(matches!(
        odd(Writer::new().tensor("t", &[4], GgmlType::F32, vec![0; 15])),
        WriteError::WrongLength { wanted: 16, found: 15, .. }
    ));
    assert!(matches!(
        odd(Writer::new().tensor("t", &[33], GgmlType::Q8_0, vec![])),
        WriteError::BadTensor { .. }
    ));
    assert!(matches!(
        odd(Writer::new().tensor("t", &[0], GgmlType::F32, vec![])),
        WriteError::BadTensor { .. }
    ));
    assert!(matches!(odd(Writer::new().declare("t", &[4], GgmlType::F32)), WriteError::NoData { .. }));
    assert!(matches!(odd(Writer::new().set("split.no", 1u16)), WriteError::OwnKey { key: "split.no", .. }));
    let few = Writer::new().f32_tensor("t", &[1], &[0.0]).finish_shards(2);
    assert!(matches!(few, Err(WriteError::BadSplit { tensors: 1, files: 2 })));
}

/// Kimi K2's largest tensors: 384 experts. No such file fits a test, its header does.
#[test]
fn headers_of_models_too_large_to_hold_can_be_written() {
    let mut writer = Writer::new();
    for layer in 1..61 {
        writer.declare(format!("blk.{layer}.ffn_gate_exps.weight"), &[7168, 2048, 384], GgmlType::Q2K);
    }
    let (bytes, len) = writer.header().unwrap();
    let header = Header::parse(&bytes, len).unwrap();
    assert_eq!(header.tensors[0].bytes, 7168 / 256 * 84 * 2048 * 384);
    assert_eq!(len, header.data_offset + 60 * header.tensors[0].bytes);
}
