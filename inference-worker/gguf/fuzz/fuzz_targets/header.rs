//! Any bytes: the reader neither panics, nor hangs, nor returns a place outside the file.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tandem_gguf::{GgmlType, GgufError, Header, ShardSet, StringArray, Writer};

/// A sound file, so that damage goes deep.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tokens: StringArray = ["a", "bc", ""].into_iter().collect();
    let mut writer = Writer::new();
    writer.alignment(64).set("name", "model").set("tokens", tokens).set("flags", vec![true, false]);
    writer.set("scores", vec![1.0f32; 3]).set("split.of", 3u16);
    writer.f32_tensor("a", &[2, 3], &[0.0; 6]).tensor("b", &[32, 2], GgmlType::Q8_0, vec![0; 68]);
    writer.finish().expect("the file is sound")
});

fuzz_target!(|data: &[u8]| {
    let [mode, more, rest @ ..] = data else { return };
    let prefix = match mode % 3 {
        0 => rest.to_vec(),
        1 => [b"GGUF\x03\0\0\0", rest].concat(),
        _ => {
            let mut file = SOUND.clone();
            for patch in rest.as_chunks::<3>().0 {
                let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % file.len();
                file[at] = patch[2];
            }
            file
        }
    };
    // How much longer the file is than what we hold of it: nothing, or a power of two.
    let held = prefix.len() as u64;
    let longer = more.checked_sub(1).and_then(|shift| 1u64.checked_shl(shift.into())).unwrap_or(0);
    check(&prefix, held.saturating_add(longer));
});

fn check(prefix: &[u8], file_len: u64) {
    match Header::parse(prefix, file_len) {
        Ok(header) => {
            let mut places: Vec<_> = header.tensors.iter().map(|tensor| tensor.range()).collect();
            places.sort_by_key(|place| place.start);
            assert!(places.iter().all(|place| place.start < place.end && place.end <= file_len));
            assert!(places.iter().all(|place| place.start % header.alignment == 0));
            assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
            // Refused or not, it must come back.
            drop(ShardSet::assemble(vec![header]));
        }
        Err(GgufError::Incomplete { needed }) => assert!(needed > prefix.len() as u64 && needed <= file_len),
        Err(_) => {}
    }
}
