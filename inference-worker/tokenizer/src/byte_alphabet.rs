//! GPT-2's alphabet: every byte as a printable character, to write vocabularies of bytes as text.

/// Bytes that stand for themselves: printable Latin-1 without the soft hyphen.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The characters of bytes that don't stand for themselves: U+0100 onwards, in byte order.
const SHIFTED: [u8; 68] = {
    let mut shifted = [0; 68];
    let (mut byte, mut count) = (0usize, 0);
    while byte < 256 {
        if !is_printable(byte as u8) {
            shifted[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    assert!(count == shifted.len());
    shifted
};

/// The byte that a character stands for.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ 0..=0xff => is_printable(code as u8).then_some(code as u8),
        code => SHIFTED.get(code as usize - 0x100).copied(),
    }
}

/// The bytes that a token's text stands for; none when it uses a character outside the alphabet.
pub(crate) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_characters_stand_for_their_bytes() {
        assert_eq!(bytes_of("Ġthe"), Some(b" the".to_vec()));
        assert_eq!(bytes_of("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(bytes_of("é"), Some(vec![0xe9]));
        assert_eq!(bytes_of("Ń"), Some(vec![0xad]));
        assert_eq!(bytes_of("a b"), None);
        assert_eq!(bytes_of("世"), None);
    }

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [false; 256];
        for character in '\0'..='\u{17f}' {
            if let Some(byte) = byte_of(character) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte:#x} twice");
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }
}
