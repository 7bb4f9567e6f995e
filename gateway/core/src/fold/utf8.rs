//! Bytes to text, when characters may be cut anywhere.

/// Decodes as `bytes.decode("utf-8", "replace")` would decode everything at once: each maximal part of a broken
/// character becomes one U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character: at most three bytes.
    held: Vec<u8>,
}

impl Utf8 {
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut rest = self.held.as_slice();
        let left = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break 0;
                }
                Err(error) => {
                    let (valid, broken) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("checked by the first call"));
                    let Some(length) = error.error_len() else { break broken.len() };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &broken[length..];
                }
            }
        };
        self.held.drain(..self.held.len() - left);
    }

    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let (mut utf8, mut out) = (Utf8::default(), String::new());
        for piece in pieces {
            utf8.push(piece, &mut out);
        }
        utf8.finish(&mut out);
        out
    }

    proptest! {
        #[test]
        fn cut_anywhere_it_decodes_as_in_one_go(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98), Just(0x80)], 0..24),
        ) {
            let whole = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(decode(bytes.chunks(1)), whole.as_ref());
            for cut in 0..=bytes.len() {
                prop_assert_eq!(decode([&bytes[..cut], &bytes[cut..]]), whole.as_ref());
            }
        }
    }

    #[test]
    fn a_character_is_given_out_once_it_is_complete() {
        let (mut utf8, mut out) = (Utf8::default(), String::new());
        utf8.push(&"😀".as_bytes()[..3], &mut out);
        assert_eq!(out, "");
        utf8.push(&"😀".as_bytes()[3..], &mut out);
        assert_eq!(out, "😀");
    }
}
