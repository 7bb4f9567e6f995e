//! What to say to somebody who named an object that is not there.

use strsim::damerau_levenshtein;

/// How many names are shown.
const SHOWN: usize = 5;

/// A way out for `name` in `namespace` (empty where the kind has none), from (namespace, name) of all that is there.
pub(crate) fn hint(namespace: &str, name: &str, known: &[(String, String)]) -> String {
    if known.is_empty() {
        return "none has been made yet".to_owned();
    }
    if let Some((other, _)) = known.iter().find(|(_, known)| known == name) {
        return format!("there is one in namespace {other}: say -n {other}");
    }
    let here: Vec<&str> =
        known.iter().filter(|(place, _)| place == namespace).map(|(_, name)| name.as_str()).collect();
    if here.is_empty() {
        let mut places: Vec<&str> = known.iter().map(|(place, _)| place.as_str()).collect();
        places.sort_unstable();
        places.dedup();
        return format!("namespace {namespace} has none; look in {}", list(&places));
    }
    let mut near: Vec<(usize, &str)> = here
        .iter()
        .map(|known| (damerau_levenshtein(name, known), *known))
        .filter(|(distance, known)| {
            *distance <= 1 + name.chars().count() / 3 || known.contains(name) || name.contains(known)
        })
        .collect();
    near.sort_unstable();
    if near.is_empty() {
        return format!("there is {}", list(&here));
    }
    let near: Vec<&str> = near.into_iter().map(|(_, name)| name).collect();
    format!("did you mean {}?", list(&near))
}

fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(SHOWN);
    let text = names[..names.len() - more].join(", ");
    if more == 0 { text } else { format!("{text} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[(&str, &str)]) -> Vec<(String, String)> {
        names.iter().map(|(place, name)| ((*place).to_owned(), (*name).to_owned())).collect()
    }

    #[test]
    fn a_slip_is_told_apart_from_another_namespace_and_from_nothing_at_all() {
        let all = known(&[("llm", "tiny-kimi"), ("llm", "kimi"), ("llm", "qwen"), ("lab", "llama")]);
        assert_eq!(hint("llm", "tiny-kmii", &all), "did you mean tiny-kimi?");
        assert_eq!(hint("llm", "kim", &all), "did you mean kimi, tiny-kimi?");
        assert_eq!(hint("llm", "llama", &all), "there is one in namespace lab: say -n lab");
        assert_eq!(hint("llm", "deepseek", &all), "there is tiny-kimi, kimi, qwen");
        assert_eq!(hint("default", "deepseek", &all), "namespace default has none; look in lab, llm");
        assert_eq!(hint("llm", "kimi", &[]), "none has been made yet");
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<(String, String)> = (0..9).map(|i| (String::new(), format!("mac-{i}"))).collect();
        assert_eq!(hint("", "zeppelin", &many), "there is mac-0, mac-1, mac-2, mac-3, mac-4 and 4 more");
    }
}
