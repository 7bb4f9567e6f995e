//! Which files of a folder a quant means, by the names that publishers use. Pure.

use std::collections::BTreeMap;

use tandem_worker_api::Sha256Hex;
use thiserror::Error;

use crate::source::is_gguf;
use crate::sums::is_inside;

/// More shards than any published model has.
const MOST_SHARDS: u32 = 1024;
/// How many names an error lists.
const SHOWN: usize = 12;

/// A file with the hash that somebody vouches for: a line of `SHA256SUMS`, or an entry of the manifest's `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Relative to the source, with `/`.
    pub name: String,
    /// Of the whole file.
    pub sha256: Sha256Hex,
}

/// No files, or too many, are what was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PickError {
    /// Nothing carries this quant.
    #[error("no file is of quant `{quant}`; there are: {there}")]
    Absent {
        /// What was asked for.
        quant: String,
        /// Names, as many as fit in a sentence.
        there: String,
    },
    /// Several models carry it.
    #[error(
        "more than one model is of quant `{quant}`: {there}; name one in the source, or list its files with their sha256"
    )]
    Ambiguous {
        /// What was asked for.
        quant: String,
        /// Names, as many as fit in a sentence.
        there: String,
    },
    /// A list of files that are not the shards of one model.
    #[error("the listed files are not the shards of one model: {0}")]
    NotOneModel(String),
    /// The file that the source names is not listed.
    #[error("`{name}` has no sha256; there is one for: {there}")]
    NotListed {
        /// What the source names.
        name: String,
        /// Names, as many as fit in a sentence.
        there: String,
    },
    /// Some shards are missing.
    #[error("`{first}` is one of {count} shards, and {missing} of them are not listed")]
    Incomplete {
        /// One of those that are there.
        first: String,
        /// How many there should be.
        count: u32,
        /// How many are missing.
        missing: u32,
    },
    /// A shard number twice or out of range, or an absurd count.
    #[error("`{0}` has a shard number that can't be")]
    BadShard(String),
    /// A name that leaves the folder.
    #[error("`{0}` is not a relative path inside the source")]
    Outside(String),
}

/// The files of one model, in shard order.
pub(crate) type Shards = Vec<ListedFile>;

/// Files that differ by their shard number only.
#[derive(Default)]
struct Group {
    count: u32,
    shards: BTreeMap<u32, ListedFile>,
}

/// What a name says: the model with folder and without shard and extension, and shard number and count.
struct Parsed<'a> {
    stem: &'a str,
    shard: Option<(u32, u32)>,
}

/// Picks the one model that carries `quant` in its name or folder.
pub(crate) fn by_quant(files: &[ListedFile], quant: &str) -> Result<Shards, PickError> {
    let models: Vec<ListedFile> = files.iter().filter(|file| is_model(&file.name)).cloned().collect();
    let fitting: Vec<ListedFile> =
        models.iter().filter(|file| carries(parse(&file.name).stem, quant)).cloned().collect();
    let quant = quant.to_owned();
    let mut groups = group(&fitting)?;
    match groups.len() {
        0 => Err(PickError::Absent { quant, there: names(if models.is_empty() { files } else { &models }) }),
        1 => complete(groups.remove(0)),
        _ => Err(PickError::Ambiguous { quant, there: names(&fitting) }),
    }
}

/// Takes the file that the source names, with its sibling shards.
pub(crate) fn by_name(files: &[ListedFile], name: &str) -> Result<Shards, PickError> {
    let mut groups = group(files)?;
    let found = groups.iter().position(|group| group.shards.values().any(|file| file.name == name));
    match found {
        Some(index) => complete(groups.swap_remove(index)),
        None => Err(PickError::NotListed { name: name.to_owned(), there: names(files) }),
    }
}

/// Takes a list that a manifest gives: all of it, which must be one model.
pub(crate) fn as_listed(files: &[ListedFile]) -> Result<Shards, PickError> {
    let mut groups = group(files)?;
    match groups.len() {
        1 => complete(groups.remove(0)),
        _ => Err(PickError::NotOneModel(names(files))),
    }
}

/// Every model that is there, each as its shards in order; of an incomplete one those that are there.
pub(crate) fn models(files: &[ListedFile]) -> Result<Vec<Shards>, PickError> {
    let models: Vec<ListedFile> = files.iter().filter(|file| is_model(&file.name)).cloned().collect();
    Ok(group(&models)?.into_iter().map(|group| group.shards.into_values().collect()).collect())
}

/// The quant that a file's name says, as a manifest should; the name itself when it says none.
pub(crate) fn quant_of(name: &str) -> String {
    let stem = parse(name).stem;
    let (folders, base) = stem.rsplit_once('/').unwrap_or(("", stem));
    let spoken = std::iter::once(base).chain(folders.rsplit('/'));
    spoken.filter_map(last_quant).next().unwrap_or(base).to_owned()
}

/// The quant at the end of a name or of a folder's name, dynamic ones with their `UD-`.
fn last_quant(part: &str) -> Option<&str> {
    let start = part.rfind(['-', '.']).map_or(0, |at| at + 1);
    if !is_quant(&part[start..]) {
        return None;
    }
    let before = part[..start].trim_end_matches(['-', '.']);
    let ud = before.len().checked_sub(2).filter(|at| {
        let word = before.is_char_boundary(*at) && before[*at..].eq_ignore_ascii_case("ud");
        word && (*at == 0 || before[..*at].ends_with(['-', '.']))
    });
    Some(&part[ud.unwrap_or(start)..])
}

/// Whether a word is what llama.cpp and publishers call a type of weights: `Q4_K_M`, `IQ2_XXS`, `TQ1_0`, `MXFP4_MOE`, `BF16`.
fn is_quant(word: &str) -> bool {
    let word = word.to_ascii_uppercase();
    let starts = ["Q", "IQ", "TQ", "MXFP", "NVFP", "BF", "F", "FP"];
    let numbered = |rest: &str| {
        let letters_fine = rest.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        rest.bytes().next().is_some_and(|c| c.is_ascii_digit()) && letters_fine
    };
    starts.iter().any(|start| word.strip_prefix(start).is_some_and(numbered))
}

fn group(files: &[ListedFile]) -> Result<Vec<Group>, PickError> {
    let mut groups: BTreeMap<(&str, u32), Group> = BTreeMap::new();
    for file in files {
        if !is_inside(&file.name) {
            return Err(PickError::Outside(file.name.clone()));
        }
        let parsed = parse(&file.name);
        let (number, count) = parsed.shard.unwrap_or((1, 1));
        if number == 0 || number > count || count > MOST_SHARDS {
            return Err(PickError::BadShard(file.name.clone()));
        }
        let group = groups.entry((parsed.stem, count)).or_default();
        group.count = count;
        if group.shards.insert(number, file.clone()).is_some() {
            return Err(PickError::BadShard(file.name.clone()));
        }
    }
    Ok(groups.into_values().collect())
}

fn complete(group: Group) -> Result<Shards, PickError> {
    let Group { count, shards } = group;
    let there = u32::try_from(shards.len()).unwrap_or(u32::MAX);
    match shards.values().next() {
        Some(first) if there < count => {
            Err(PickError::Incomplete { first: first.name.clone(), count, missing: count - there })
        }
        _ => Ok(shards.into_values().collect()),
    }
}

/// Whether this is a language model's file. Vision towers and importance matrices lie in the same folders.
fn is_model(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    is_gguf(&base) && !base.starts_with("mmproj") && !base.contains("imatrix")
}

/// Splits `UD-Q2_K_XL/Kimi-UD-Q2_K_XL-00001-of-00008.gguf`.
fn parse(name: &str) -> Parsed<'_> {
    let stem = name.len().checked_sub(5).filter(|_| is_gguf(name)).map_or(name, |end| &name[..end]);
    let number = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|c| c.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let shard = stem.rsplit_once("-of-").and_then(|(head, count)| {
        let (model, index) = head.rsplit_once('-')?;
        Some((model, number(index)?, number(count)?))
    });
    match shard {
        Some((model, index, count)) => Parsed { stem: model, shard: Some((index, count)) },
        None => Parsed { stem, shard: None },
    }
}

/// Whether the last words of a name, or the name of a folder above it, are the quant. `UD-Q4_K_XL` is not `Q4_K_XL`.
fn carries(stem: &str, quant: &str) -> bool {
    let quant = quant.to_ascii_lowercase();
    if quant.is_empty() {
        return false;
    }
    stem.to_ascii_lowercase().split('/').any(|part| {
        let Some(before) = part.strip_suffix(&quant) else { return false };
        // Not '_': it is inside of quants, and K_XL is none.
        let model = before.trim_end_matches(['-', '.']);
        let apart = before.is_empty() || model.len() < before.len();
        let dynamic = model == "ud" || ["-ud", ".ud"].iter().any(|ud| model.ends_with(ud));
        apart && !dynamic
    })
}

fn names(files: &[ListedFile]) -> String {
    if files.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<&str> = files.iter().take(SHOWN).map(|file| file.name.as_str()).collect();
    let more = files.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<ListedFile> {
        let listed = |name: &&str| ListedFile { name: (*name).to_owned(), sha256: Sha256Hex::from([7; 32]) };
        names.iter().map(listed).collect()
    }

    fn picked(there: &[&str], quant: &str) -> Result<Vec<String>, PickError> {
        by_quant(&files(there), quant).map(|shards| shards.into_iter().map(|file| file.name).collect())
    }

    const UNSLOTH: [&str; 7] = [
        "README.md",
        "UD-Q2_K_XL/Kimi-K2.5-UD-Q2_K_XL-00002-of-00002.gguf",
        "UD-Q2_K_XL/Kimi-K2.5-UD-Q2_K_XL-00001-of-00002.gguf",
        "Q2_K_L/Kimi-K2.5-Q2_K_L-00001-of-00001.gguf",
        "Kimi-K2.5-Q8_0.gguf",
        "BF16/Kimi-K2.5-BF16.gguf",
        "mmproj-BF16.gguf",
    ];

    #[test]
    fn the_usual_names_are_picked_in_shard_order() {
        assert_eq!(
            picked(&UNSLOTH, "UD-Q2_K_XL").unwrap(),
            [
                "UD-Q2_K_XL/Kimi-K2.5-UD-Q2_K_XL-00001-of-00002.gguf",
                "UD-Q2_K_XL/Kimi-K2.5-UD-Q2_K_XL-00002-of-00002.gguf"
            ]
        );
        assert_eq!(picked(&UNSLOTH, "q2_k_l").unwrap(), ["Q2_K_L/Kimi-K2.5-Q2_K_L-00001-of-00001.gguf"]);
        assert_eq!(picked(&UNSLOTH, "Q8_0").unwrap(), ["Kimi-K2.5-Q8_0.gguf"]);
        assert_eq!(picked(&UNSLOTH, "BF16").unwrap(), ["BF16/Kimi-K2.5-BF16.gguf"]);
        assert_eq!(picked(&["Q8_0.gguf"], "Q8_0").unwrap(), ["Q8_0.gguf"]);
        assert_eq!(picked(&["Q4_K_M/part.gguf"], "Q4_K_M").unwrap(), ["Q4_K_M/part.gguf"]);
        assert_eq!(picked(&["tiny.Q4_0.gguf"], "Q4_0").unwrap(), ["tiny.Q4_0.gguf"]);
    }

    #[test]
    fn a_name_says_its_quant() {
        for (name, expected) in [
            (UNSLOTH[1], "UD-Q2_K_XL"),
            (UNSLOTH[3], "Q2_K_L"),
            (UNSLOTH[4], "Q8_0"),
            ("BF16/Kimi-K2.5.gguf", "BF16"),
            ("tiny.IQ2_XXS.gguf", "IQ2_XXS"),
            ("gpt-oss-120b-MXFP4_MOE.gguf", "MXFP4_MOE"),
            ("cloud-Q4_0.gguf", "Q4_0"),
            ("UD-IQ1_S/part-00001-of-00002.gguf", "UD-IQ1_S"),
            ("Kimi-K2.5.gguf", "Kimi-K2.5"),
            ("ä-UD-Q4_0.gguf", "UD-Q4_0"),
        ] {
            assert_eq!(quant_of(name), expected, "{name}");
            assert!(carries(parse(name).stem, expected) || expected == "Kimi-K2.5", "{name}");
        }
        let there = models(&files(&UNSLOTH)).unwrap();
        assert_eq!(there.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 2]);
    }

    #[test]
    fn a_quant_is_whole_words() {
        for quant in ["Q2_K_XL", "K_XL", "Q2_K", "8_0", "XL", ""] {
            assert!(matches!(picked(&UNSLOTH, quant), Err(PickError::Absent { .. })), "{quant}");
        }
        // Dynamic quants are others, however their name ends.
        let both = ["m-Q4_K_XL.gguf", "m-UD-Q4_K_XL.gguf"];
        assert_eq!(picked(&both, "Q4_K_XL").unwrap(), ["m-Q4_K_XL.gguf"]);
        assert_eq!(picked(&both, "UD-Q4_K_XL").unwrap(), ["m-UD-Q4_K_XL.gguf"]);
        // A model whose own name ends with "ud" is no dynamic quant.
        assert_eq!(picked(&["cloud-Q4_0.gguf"], "Q4_0").unwrap(), ["cloud-Q4_0.gguf"]);
    }

    #[test]
    fn absence_and_ambiguity_list_what_there_is() {
        let error = picked(&UNSLOTH, "Q3_K_M").unwrap_err().to_string();
        assert!(error.contains("Kimi-K2.5-Q8_0.gguf") && !error.contains("mmproj"), "{error}");
        let error = picked(&["a-Q8_0.gguf", "b-Q8_0.gguf"], "Q8_0").unwrap_err().to_string();
        assert!(error.contains("a-Q8_0.gguf, b-Q8_0.gguf"), "{error}");
        assert!(picked(&[], "Q8_0").unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn shards_must_be_all_there_once() {
        let error = picked(&["m-Q8_0-00002-of-00003.gguf"], "Q8_0").unwrap_err();
        assert!(matches!(error, PickError::Incomplete { count: 3, missing: 2, .. }), "{error}");
        for bad in ["m-Q8_0-00000-of-00003.gguf", "m-Q8_0-00004-of-00003.gguf", "m-Q8_0-00001-of-99999.gguf"]
        {
            assert!(matches!(picked(&[bad], "Q8_0"), Err(PickError::BadShard(_))), "{bad}");
        }
    }

    #[test]
    fn a_list_or_a_name_needs_no_quant() {
        let shards = as_listed(&files(&["x-00002-of-00002.gguf", "x-00001-of-00002.gguf"])).unwrap();
        assert_eq!(shards[0].name, "x-00001-of-00002.gguf");
        assert!(matches!(as_listed(&files(&["x.gguf", "y.gguf"])), Err(PickError::NotOneModel(_))));
        assert!(matches!(as_listed(&[]), Err(PickError::NotOneModel(_))));
        assert!(matches!(as_listed(&files(&["../x.gguf"])), Err(PickError::Outside(_))));
        let there = files(&["x.gguf", "y-00001-of-00002.gguf", "y-00002-of-00002.gguf"]);
        assert_eq!(by_name(&there, "y-00002-of-00002.gguf").unwrap().len(), 2);
        assert!(by_name(&there, "z.gguf").unwrap_err().to_string().contains("x.gguf"));
    }
}
