//! Models in several files: whole ones, and ones that are not.

use tandem_gguf::{GgmlType, Header, ShardError, ShardSet, Writer};

fn headers(files: &[Vec<u8>]) -> Vec<Header> {
    files
        .iter()
        .map(|file| Header::parse(file, file.len() as u64).expect("the writer's files are sound"))
        .collect()
}

/// Five tensors in three files.
fn model() -> Vec<Vec<u8>> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama");
    for index in 0..5u8 {
        writer.tensor(format!("t{index}"), &[32], GgmlType::Q8_0, vec![index; 34]);
    }
    writer.finish_shards(3).expect("the model is sound")
}

/// One file with the given split keys.
fn shard(number: u16, count: u16, tensors: i32, names: &[&str]) -> Vec<u8> {
    // The writer sets these keys itself; so write others of the same length and rename them.
    let mut writer = Writer::new();
    writer.set("SPLIT.no", number).set("SPLIT.count", count).set("SPLIT.tensors.count", tensors);
    for name in names {
        writer.f32_tensor(*name, &[1], &[0.0]);
    }
    let mut file = writer.finish().expect("the shard is sound");
    for at in 0..file.len() - 6 {
        if &file[at..at + 6] == b"SPLIT." {
            file[at..at + 6].copy_from_slice(b"split.");
        }
    }
    file
}

fn error(files: &[Vec<u8>]) -> ShardError {
    ShardSet::assemble(headers(files)).expect_err("the files are no model")
}

#[test]
fn a_whole_model_is_put_together() {
    let files = model();
    let set = ShardSet::assemble(headers(&files)).unwrap();
    assert_eq!(set.metadata().get::<&str>("general.architecture"), Ok("llama"));
    assert_eq!(set.headers().len(), 3);
    assert_eq!(set.tensor_bytes(), 5 * 34);
    let names: Vec<_> = set.tensors().map(|(_, tensor)| tensor.name.as_str()).collect();
    assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
    for index in 0..5u8 {
        let (file, tensor) = set.tensor(&format!("t{index}")).unwrap();
        assert_eq!(files[file][tensor.range_in_memory().unwrap()], [index; 34]);
    }
    assert!(set.tensor("t5").is_none());
}

#[test]
fn a_model_in_one_file_is_a_set_of_one() {
    let file = Writer::new().f32_tensor("t", &[1], &[1.0]).finish().unwrap();
    assert_eq!(ShardSet::assemble(headers(&[file])).unwrap().tensor("t").unwrap().0, 0);
    let split_in_one = shard(0, 1, 1, &["t"]);
    assert!(ShardSet::assemble(headers(&[split_in_one])).is_ok());
}

#[test]
fn a_missing_shard_is_noticed() {
    let files = model();
    assert_eq!(error(&files[..2]), ShardError::WrongCount { file: 1, expected: 3, given: 2 });
    assert_eq!(error(&files[..1]), ShardError::WrongCount { file: 1, expected: 3, given: 1 });
    assert_eq!(error(&[]), ShardError::NoFiles);
    assert_eq!(error(&files[..2]).to_string(), "file 1 says that the model has 3 files, but 2 were given");
}

#[test]
fn a_superfluous_shard_is_noticed() {
    let mut files = model();
    files.push(files[0].clone());
    assert_eq!(error(&files), ShardError::WrongCount { file: 1, expected: 3, given: 4 });
    let unsplit = Writer::new().f32_tensor("t", &[1], &[1.0]).finish().unwrap();
    assert_eq!(error(&[unsplit.clone(), unsplit]), ShardError::WrongCount { file: 1, expected: 1, given: 2 });
}

#[test]
fn shards_out_of_order_are_noticed() {
    let mut files = model();
    files.swap(1, 2);
    assert_eq!(error(&files), ShardError::OutOfOrder { file: 2, found: 2 });
    files.swap(0, 1);
    assert_eq!(error(&files), ShardError::OutOfOrder { file: 1, found: 2 });
}

#[test]
fn a_shard_of_a_smaller_split_is_noticed() {
    let files = [shard(0, 2, 2, &["a"]), shard(1, 3, 2, &["b"])];
    assert_eq!(error(&files), ShardError::WrongCount { file: 2, expected: 3, given: 2 });
}

#[test]
fn missing_tensors_are_noticed() {
    let files = [shard(0, 2, 3, &["a"]), shard(1, 2, 3, &["b"])];
    assert_eq!(error(&files), ShardError::WrongTensorCount { file: 1, expected: 3, found: 2 });
}

#[test]
fn a_tensor_in_two_shards_is_noticed() {
    let files = [shard(0, 2, 3, &["a", "b"]), shard(1, 2, 3, &["a"])];
    assert_eq!(error(&files), ShardError::DuplicateTensor { name: "a".into(), first: 1, second: 2 });
}

#[test]
fn split_metadata_that_is_nonsense_is_refused() {
    let mut file = shard(0, 2, 1, &["a"]);
    let negative = shard(0, 1, -1, &["a"]);
    assert!(matches!(error(&[negative]), ShardError::BadSplitMetadata { file: 1, .. }));
    // A count of another type: u16 becomes f32 by its id only where the value has four bytes, so use an
    // i32's.
    let at =
        file.windows(20).position(|window| window == b"split.tensors.count\x05").expect("the key is there");
    file[at + 19] = 6;
    assert!(matches!(error(&[file, shard(1, 2, 1, &[])]), ShardError::BadSplitMetadata { file: 1, .. }));
}
