//! Files that lie: every lie gets its own error, and none costs more memory than the file has bytes.

use tandem_gguf::{
    GgmlType, GgufError, Header, MAX_HEADER_BYTES, MAX_METADATA, MAX_TENSORS, RowError, Writer,
};

/// A file written field by field, so that any field can be wrong.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    /// Magic, version 3, and the counts.
    fn new(tensors: u64, metadata: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(metadata)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    fn string(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key with a u32.
    fn number(self, key: &str, value: u32) -> Raw {
        self.string(key).u32(4).u32(value)
    }

    /// A key with an array of `count` elements of type `id`, of which none follow.
    fn array(self, key: &str, id: u32, count: u64) -> Raw {
        self.string(key).u32(9).u32(id).u64(count)
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let start = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(start, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }

    /// Up to the start of the tensor data, and `data` bytes of it.
    fn data(mut self, data: usize) -> Raw {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + data, 0);
        self
    }

    fn parse(&self) -> Result<Header, GgufError> {
        Header::parse(&self.0, self.0.len() as u64)
    }

    fn error(&self) -> GgufError {
        self.parse().expect_err("the file is a lie")
    }
}

const F32: u32 = 0;

/// One f32 tensor of `dims` at `offset`, with 256 bytes of data behind the header.
fn one_tensor(dims: &[u64], ty: u32, offset: u64) -> Raw {
    Raw::new(1, 0).tensor("t", dims, ty, offset).data(256)
}

#[test]
fn the_raw_files_of_these_tests_are_sound_but_for_their_lie() {
    let file =
        Raw::new(2, 1).number("k", 1).tensor("a", &[8], F32, 0).tensor("b", &[2, 2, 2, 2], F32, 32).data(96);
    let header = file.parse().unwrap();
    assert_eq!((header.version, header.alignment, header.tensors.len()), (3, 32, 2));
    assert_eq!(header.tensors[1].shape(), [2, 2, 2, 2]);
    assert_eq!(header.tensors[1].range(), header.data_offset + 32..header.data_offset + 96);
    let mut second = file.0.clone();
    second[4] = 2;
    assert_eq!(Header::parse(&second, second.len() as u64).unwrap().tensors, header.tensors);
}

#[test]
fn a_wrong_magic_is_refused() {
    assert_eq!(Raw(b"GGML\x03\0\0\0".to_vec()).error(), GgufError::WrongMagic { found: *b"GGML" });
    assert_eq!(Raw(b"PK\x03\x04rest".to_vec()).error(), GgufError::WrongMagic { found: *b"PK\x03\x04" });
}

#[test]
fn other_versions_and_big_endian_files_are_refused() {
    let version = |version: u32| Raw(b"GGUF".to_vec()).u32(version).u64(0).u64(0).error();
    assert_eq!(version(1), GgufError::UnsupportedVersion { version: 1 });
    assert_eq!(version(4), GgufError::UnsupportedVersion { version: 4 });
    assert_eq!(version(0), GgufError::UnsupportedVersion { version: 0 });
    assert_eq!(version(3u32.swap_bytes()), GgufError::BigEndian);
}

#[test]
fn counts_of_two_to_the_63_are_refused() {
    let tensors = Raw::new(1 << 63, 0).data(4096);
    assert!(matches!(
        tensors.error(),
        GgufError::TooMany { what: "tensors", count: 0x8000_0000_0000_0000, .. }
    ));
    let metadata = Raw::new(0, 1 << 63).data(4096);
    assert!(matches!(
        metadata.error(),
        GgufError::TooMany { what: "metadata keys", count: 0x8000_0000_0000_0000, .. }
    ));
    for id in 0..=12 {
        let array = Raw::new(0, 1).array("k", id, 1 << 63).data(4096);
        assert!(
            matches!(
                array.error(),
                GgufError::PastEnd { .. } | GgufError::TooMany { .. } | GgufError::NestedArray { .. }
            ),
            "{id}"
        );
    }
}

#[test]
fn counts_beyond_any_real_file_are_refused_however_large_the_file() {
    let limit = |raw: Raw| match Header::parse(&raw.0, u64::MAX) {
        Err(GgufError::TooMany { limit, .. }) => limit,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(Raw::new(MAX_TENSORS + 1, 0)), MAX_TENSORS);
    assert_eq!(limit(Raw::new(0, MAX_METADATA + 1)), MAX_METADATA);
}

#[test]
fn a_string_longer_than_the_file_is_refused() {
    for len in [100_000, u64::MAX, u64::MAX - 30] {
        let value = Raw::new(0, 1).string("k").u32(8).u64(len).data(64);
        assert!(matches!(value.error(), GgufError::PastEnd { wanted, .. } if wanted == len));
        let key = Raw::new(0, 1).u64(len).data(64);
        assert!(matches!(key.error(), GgufError::PastEnd { what: "a metadata key", .. }));
        let name = Raw::new(1, 0).u64(len).data(64);
        assert!(matches!(name.error(), GgufError::PastEnd { what: "a tensor's name", .. }));
    }
}

#[test]
fn arrays_of_a_terabyte_are_refused_without_allocating() {
    const TERABYTE: u64 = 1 << 40;
    // In a small file they leave it; in a file that could hold them, they make no header.
    for id in [0, 4, 7, 8, 10] {
        let raw = Raw::new(0, 1).array("k", id, TERABYTE).data(64);
        assert!(matches!(raw.error(), GgufError::PastEnd { .. } | GgufError::TooMany { .. }), "{id}");
        let in_large = Header::parse(&raw.0, u64::MAX / 2);
        match in_large {
            Err(GgufError::HeaderTooLarge { limit, .. }) => assert_eq!(limit, MAX_HEADER_BYTES),
            // Strings are only known one by one.
            Err(GgufError::Incomplete { needed }) if id == 8 => assert!(needed <= raw.0.len() as u64 + 8),
            other => panic!("{id}: {other:?}"),
        }
    }
}

#[test]
fn unknown_value_types_are_refused_by_key() {
    let value = Raw::new(0, 1).string("k").u32(13).data(64);
    assert_eq!(value.error(), GgufError::UnknownValueType { key: "k".into(), id: 13 });
    let element = Raw::new(0, 1).array("k", u32::MAX, 1).data(64);
    assert_eq!(element.error(), GgufError::UnknownValueType { key: "k".into(), id: u32::MAX });
    let nested = Raw::new(0, 1).array("k", 9, 1).data(64);
    assert_eq!(nested.error(), GgufError::NestedArray { key: "k".into() });
}

#[test]
fn element_types_out_of_range_are_refused_by_tensor() {
    let error = |id| one_tensor(&[32], id, 0).error();
    assert_eq!(error(43), GgufError::UnknownElementType { name: "t".into(), id: 43 });
    assert_eq!(error(u32::MAX), GgufError::UnknownElementType { name: "t".into(), id: u32::MAX });
    assert_eq!(error(4), GgufError::WithdrawnElementType { name: "t".into(), ty: "Q4_2" });
}

#[test]
fn a_boolean_that_is_neither_is_refused() {
    let value = Raw::new(0, 1).string("k").u32(7).bytes(&[2]).data(64);
    assert_eq!(value.error(), GgufError::BadBool { key: "k".into(), found: 2 });
    let array = Raw::new(0, 1).array("k", 7, 2).bytes(&[1, 255]).data(64);
    assert_eq!(array.error(), GgufError::BadBool { key: "k".into(), found: 255 });
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let value = Raw::new(0, 1).string("k").u32(8).u64(2).bytes(&[0xff, 0xfe]).data(64);
    assert!(matches!(value.error(), GgufError::NotUtf8 { what: "a metadata string", .. }));
    let name = Raw::new(1, 0).u64(1).bytes(&[0x80]).data(64);
    assert!(matches!(name.error(), GgufError::NotUtf8 { what: "a tensor's name", .. }));
}

#[test]
fn names_of_no_or_too_many_bytes_are_refused() {
    let name = |len: usize| Raw::new(1, 0).tensor(&"n".repeat(len), &[1], F32, 0).data(64).parse();
    assert!(matches!(name(0), Err(GgufError::BadNameLength { len: 0, limit: 64, .. })));
    assert!(name(64).is_ok());
    assert!(matches!(name(65), Err(GgufError::BadNameLength { len: 65, .. })));
    let key = |len: usize| Raw::new(0, 1).number(&"k".repeat(len), 1).parse();
    assert!(matches!(key(0), Err(GgufError::BadNameLength { len: 0, .. })));
    assert!(key(65_535).is_ok());
    assert!(matches!(key(65_536), Err(GgufError::BadNameLength { len: 65_536, .. })));
}

#[test]
fn duplicate_keys_are_refused() {
    let twice = Raw::new(0, 2).number("k", 1).number("k", 1);
    assert_eq!(twice.error(), GgufError::DuplicateKey { key: "k".into() });
}

#[test]
fn duplicate_tensor_names_are_refused() {
    let twice = Raw::new(2, 0).tensor("t", &[8], F32, 0).tensor("t", &[8], F32, 32).data(64);
    assert_eq!(twice.error(), GgufError::DuplicateTensor { name: "t".into() });
}

#[test]
fn zero_dimensions_are_refused() {
    assert_eq!(one_tensor(&[], F32, 0).error(), GgufError::BadRank { name: "t".into(), rank: 0 });
    assert_eq!(one_tensor(&[0], F32, 0).error(), GgufError::ZeroDimension { name: "t".into(), axis: 0 });
    assert_eq!(
        one_tensor(&[4, 4, 0], F32, 0).error(),
        GgufError::ZeroDimension { name: "t".into(), axis: 2 }
    );
}

#[test]
fn five_dimensions_are_refused() {
    assert_eq!(one_tensor(&[1; 5], F32, 0).error(), GgufError::BadRank { name: "t".into(), rank: 5 });
    let endless = Raw::new(1, 0).string("t").u32(u32::MAX).data(256);
    assert_eq!(endless.error(), GgufError::BadRank { name: "t".into(), rank: u32::MAX });
}

#[test]
fn sizes_that_wrap_are_refused() {
    for dims in [&[1 << 32, 1 << 32][..], &[u64::MAX], &[1 << 63, 2], &[1 << 62], &[3, u64::MAX / 2, 1, 1]] {
        assert_eq!(
            one_tensor(dims, F32, 0).error(),
            GgufError::TensorTooLarge { name: "t".into() },
            "{dims:?}"
        );
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused() {
    let error = one_tensor(&[33], GgmlType::Q8_0.id(), 0).error();
    let source = RowError::PartialBlock { ty: GgmlType::Q8_0, elements: 33 };
    assert_eq!(error, GgufError::PartialRow { name: "t".into(), source });
}

#[test]
fn offsets_that_leave_the_file_are_refused() {
    assert!(one_tensor(&[64], F32, 0).parse().is_ok());
    for (dims, offset) in [(64, 32), (65, 0), (1, 256), (1, 1 << 40)] {
        assert!(
            matches!(one_tensor(&[dims], F32, offset).error(), GgufError::TensorPastEnd { .. }),
            "{dims} at {offset}"
        );
    }
}

#[test]
fn offsets_that_wrap_are_refused() {
    for offset in [u64::MAX - 31, u64::MAX - 255, 1 << 63] {
        assert!(
            matches!(one_tensor(&[64], F32, offset).error(), GgufError::TensorPastEnd { .. }),
            "{offset}"
        );
    }
}

#[test]
fn offsets_that_are_not_aligned_are_refused() {
    let error = one_tensor(&[1], F32, 33).error();
    assert_eq!(error, GgufError::Misaligned { name: "t".into(), offset: 33, alignment: 32 });
}

#[test]
fn tensors_that_overlap_are_refused() {
    let pair = |first: u64, second: u64| {
        Raw::new(2, 0).tensor("a", &[16], F32, first).tensor("b", &[16], F32, second).data(256).parse()
    };
    assert!(pair(0, 64).is_ok());
    assert!(pair(128, 0).is_ok());
    assert_eq!(pair(0, 32), Err(GgufError::Overlap { first: "a".into(), second: "b".into() }));
    assert_eq!(pair(96, 64), Err(GgufError::Overlap { first: "b".into(), second: "a".into() }));
    assert!(matches!(pair(64, 64), Err(GgufError::Overlap { .. })));
}

#[test]
fn alignments_that_are_none_are_refused() {
    let aligned = |alignment| Raw::new(0, 1).number("general.alignment", alignment).parse();
    for alignment in [0, 1, 4, 31, 48, 1 << 21, u32::MAX] {
        assert!(matches!(aligned(alignment), Err(GgufError::BadAlignment { .. })), "{alignment}");
    }
    assert_eq!(aligned(64).unwrap().alignment, 64);
    let text = Raw::new(0, 1).string("general.alignment").u32(8).string("32");
    assert_eq!(text.error(), GgufError::BadAlignment { found: "a string".into() });
}

#[test]
fn a_short_prefix_is_told_from_a_short_file() {
    let mut writer = Writer::new();
    writer.set("general.name", "model").set("list", vec![1u64, 2, 3]).f32_tensor("t", &[4], &[1.0; 4]);
    let file = writer.finish().unwrap();
    let len = file.len() as u64;
    let whole = Header::parse(&file, len).unwrap();
    let header_len = whole.data_offset as usize;
    let mut asked = 0;
    for cut in 0..file.len() {
        match Header::parse(&file[..cut], len) {
            Err(GgufError::Incomplete { needed }) => {
                assert!(needed > cut as u64 && needed <= len);
                assert!(needed >= asked, "asks for more and more");
                asked = needed;
            }
            Ok(header) => assert!(cut + 32 > header_len && header == whole),
            Err(other) => panic!("{cut}: {other}"),
        }
        let truncated = Header::parse(&file[..cut], cut as u64);
        assert!(matches!(truncated, Err(error) if !matches!(error, GgufError::Incomplete { .. })), "{cut}");
    }
}

#[test]
fn a_header_that_would_never_end_is_refused() {
    // A file of 300 GB may say that its first string takes 290 GB.
    let raw = Raw::new(0, 1).string("k").u32(8).u64(290 << 30);
    assert!(matches!(Header::parse(&raw.0, 300 << 30), Err(GgufError::HeaderTooLarge { .. })));
}

#[test]
fn a_file_longer_than_it_claims_to_be_is_read_to_the_claim() {
    let file = one_tensor(&[64], F32, 0);
    assert!(matches!(Header::parse(&file.0, file.0.len() as u64 - 1), Err(GgufError::TensorPastEnd { .. })));
    assert!(matches!(Header::parse(&file.0, 3), Err(GgufError::PastEnd { .. })));
}
