//! `SHA256SUMS` as `sha256sum` writes it.

use tandem_worker_api::Sha256Hex;
use thiserror::Error;

use crate::ListedFile;

/// What the file is called.
pub(crate) const NAME: &str = "SHA256SUMS";
/// Longest such file that is read, in bytes: some ten thousand lines.
pub(crate) const LONGEST: u64 = 1 << 20;

/// A `SHA256SUMS` that can't be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadSums {
    /// Not text.
    #[error("SHA256SUMS is not UTF-8 text: make it with `sha256sum *.gguf > SHA256SUMS`")]
    NotText,
    /// A line that is neither a hash with a name nor a comment.
    #[error("line {0} of SHA256SUMS is not `HASH  NAME`: make it with `sha256sum *.gguf > SHA256SUMS`")]
    Line(usize),
    /// A name that leaves the folder.
    #[error("line {0} of SHA256SUMS names a file outside its folder")]
    Outside(usize),
    /// Two hashes for one name.
    #[error("SHA256SUMS has two different hashes for `{0}`: make it again")]
    Contradiction(String),
}

/// Reads the whole file; names are relative, with `/`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<ListedFile>, BadSums> {
    let text = str::from_utf8(bytes).map_err(|_| BadSums::NotText)?;
    let mut files: Vec<ListedFile> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let (hash, name) = line.split_at_checked(64).ok_or(BadSums::Line(number))?;
        let sha256: Sha256Hex = hash.to_ascii_lowercase().parse().map_err(|_| BadSums::Line(number))?;
        // Two spaces, or a space and the star that says binary mode.
        let name =
            name.strip_prefix("  ").or_else(|| name.strip_prefix(" *")).ok_or(BadSums::Line(number))?;
        let name = name.strip_prefix("./").unwrap_or(name);
        if !is_inside(name) {
            return Err(BadSums::Outside(number));
        }
        match files.iter().find(|file| file.name == name) {
            Some(known) if known.sha256 != sha256 => return Err(BadSums::Contradiction(name.to_owned())),
            Some(_) => {}
            None => files.push(ListedFile { name: name.to_owned(), sha256 }),
        }
    }
    Ok(files)
}

/// Whether a relative name stays below the folder it is joined to.
#[must_use]
pub fn is_inside(name: &str) -> bool {
    name.len() <= 512
        && !name.contains('\\')
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn both_modes_comments_and_folders_are_read() {
        let text =
            format!("# made by hand\n{A}  x.gguf\n{}  Q4/y 1.gguf\r\n\n{A} *./z.gguf\n", A.to_uppercase());
        let names: Vec<_> = parse(text.as_bytes()).unwrap().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["x.gguf", "Q4/y 1.gguf", "z.gguf"]);
    }

    #[test]
    fn bad_lines_are_named_by_number() {
        let b = A.replace('a', "b");
        for (text, expected) in [
            (format!("{A}\n"), BadSums::Line(1)),
            (format!("{A}  ok\n{A} x\n"), BadSums::Line(2)),
            ("zz  x\n".to_owned(), BadSums::Line(1)),
            (format!("{A}  ../x\n"), BadSums::Outside(1)),
            (format!("{A}  /x\n"), BadSums::Outside(1)),
            (format!("{A}  a\\x\n"), BadSums::Outside(1)),
            (format!("{A}  x\n{b}  x\n"), BadSums::Contradiction("x".to_owned())),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(expected), "{text}");
        }
        assert_eq!(parse(&[0xff; 70]), Err(BadSums::NotText));
    }
}
