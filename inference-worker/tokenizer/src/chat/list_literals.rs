//! Rewrites a template so that its list literals are lists that can be changed in place.
//!
//! The template engine's own lists are values without methods such as `append`. A literal `[…]` therefore
//! becomes `mutable_list([…])`; subscripts, strings, comments and raw blocks stay as they are.

/// The function that makes a changeable list of a list.
pub(super) const FUNCTION: &str = "mutable_list";

/// Words after which a bracket opens a literal, although they look like a name that could be subscripted.
const KEYWORDS: [&str; 12] =
    ["in", "not", "and", "or", "is", "if", "elif", "else", "set", "do", "return", "call"];

/// Methods that only a changeable list has.
const METHODS: [&str; 7] = [".append(", ".pop(", ".extend(", ".insert(", ".remove(", ".clear(", ".reverse("];

/// The template with changeable lists, or as it is when it changes none.
pub(super) fn rewrite(source: &str) -> String {
    if !METHODS.iter().any(|method| source.contains(method)) {
        return source.to_owned();
    }
    let mut out = String::with_capacity(source.len() + 256);
    let mut rest = source;
    while let Some(open) = rest.find('{') {
        let (text, tag) = rest.split_at(open);
        out.push_str(text);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |at| at + 2),
            Some(b'%' | b'{') => {
                let raw = raw_block(tag);
                if raw == 0 {
                    let end = tag_end(tag);
                    rewrite_tag(&tag[..end], &mut out);
                    rest = &tag[end..];
                    continue;
                }
                raw
            }
            _ => 1,
        };
        out.push_str(&tag[..end]);
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// The length of a `{% raw %}…{% endraw %}` at the start, or 0.
fn raw_block(tag: &str) -> usize {
    let name = |tag: &str| {
        let inner = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
        Some(inner.chars().take_while(char::is_ascii_alphanumeric).collect::<String>())
    };
    if name(tag).as_deref() != Some("raw") {
        return 0;
    }
    let mut at = 2;
    while let Some(next) = tag[at..].find("{%") {
        at += next;
        if name(&tag[at..]).as_deref() == Some("endraw") {
            return at + tag[at..].find("%}").map_or(tag.len() - at, |end| end + 2);
        }
        at += 2;
    }
    tag.len()
}

/// The pieces of an expression, as far as brackets care.
enum Lexeme<'t> {
    Text(&'t str),
    Word(&'t str),
    Blank(&'t str),
    Sign(char),
}

/// Takes one lexeme from the front.
fn lexeme(rest: &str) -> Option<(Lexeme<'_>, &str)> {
    let first = rest.chars().next()?;
    let split = |at: usize| rest.split_at(at);
    Some(match first {
        '"' | '\'' => {
            let mut escaped = false;
            let end = rest.char_indices().skip(1).find(|&(_, c)| {
                let ends = c == first && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let (text, rest) = split(end.map_or(rest.len(), |(at, _)| at + 1));
            (Lexeme::Text(text), rest)
        }
        c if c.is_whitespace() => {
            let (blank, rest) = split(rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len()));
            (Lexeme::Blank(blank), rest)
        }
        c if c.is_alphanumeric() || c == '_' => {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (word, rest) = split(end);
            (Lexeme::Word(word), rest)
        }
        sign => (Lexeme::Sign(sign), &rest[sign.len_utf8()..]),
    })
}

/// Where the tag at the start ends, its closing included.
fn tag_end(tag: &str) -> usize {
    let close = if tag.starts_with("{%") { "%}" } else { "}}" };
    let mut rest = &tag[2..];
    let mut braces = 0usize;
    loop {
        if braces == 0 && rest.starts_with(close) {
            return tag.len() - rest.len() + close.len();
        }
        let Some((lexeme, after)) = lexeme(rest) else { return tag.len() };
        match lexeme {
            Lexeme::Sign('{') => braces += 1,
            Lexeme::Sign('}') => braces = braces.saturating_sub(1),
            _ => {}
        }
        rest = after;
    }
}

fn rewrite_tag(tag: &str, out: &mut String) {
    let (open, mut rest) = tag.split_at(2);
    out.push_str(open);
    // Whether what came last can be subscripted.
    let mut value_before = false;
    // Of every open bracket, whether it opened a literal.
    let mut literals = Vec::new();
    while let Some((lexeme, after)) = lexeme(rest) {
        rest = after;
        match lexeme {
            Lexeme::Blank(blank) => out.push_str(blank),
            Lexeme::Text(text) => {
                out.push_str(text);
                value_before = true;
            }
            Lexeme::Word(word) => {
                out.push_str(word);
                value_before = !KEYWORDS.contains(&word);
            }
            Lexeme::Sign('[') => {
                if !value_before {
                    out.push_str(FUNCTION);
                    out.push('(');
                }
                out.push('[');
                literals.push(!value_before);
                value_before = false;
            }
            Lexeme::Sign(']') => {
                out.push(']');
                if literals.pop() == Some(true) {
                    out.push(')');
                }
                value_before = true;
            }
            Lexeme::Sign(sign) => {
                out.push(sign);
                value_before = matches!(sign, ')' | '}');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a method call behind it, so that there is something to rewrite.
    fn rewritten(source: &str) -> String {
        let out = rewrite(&format!("{source}{{{{ x.append(1) }}}}"));
        out.strip_suffix("{{ x.append(1) }}").unwrap().to_owned()
    }

    #[test]
    fn literals_become_calls() {
        assert_eq!(rewritten("{% set a = [] %}"), "{% set a = mutable_list([]) %}");
        assert_eq!(
            rewritten("{%- set a = [1, [x]] -%}"),
            "{%- set a = mutable_list([1, mutable_list([x])]) -%}"
        );
        assert_eq!(rewritten("{{ x in ['a'] }}"), "{{ x in mutable_list(['a']) }}");
        assert_eq!(rewritten("{{ f([], a=[]) }}"), "{{ f(mutable_list([]), a=mutable_list([])) }}");
        assert_eq!(rewritten("{{ {'k': []} }}"), "{{ {'k': mutable_list([])} }}");
    }

    #[test]
    fn everything_else_stays() {
        for source in [
            "text [a] {b} { [ }",
            "{{ a[0] }}",
            "{{ a['b'][1:] }}",
            "{{ f(x)[0] }}",
            "{{ 'abc'[0] }}",
            "{{ '[' ~ \"]['\" ~ 'it\\'s [' }}",
            "{# [comment] {{ [x] }} #}",
            "{% raw %}{{ [x] }} {% set y = [] %}{% endraw %}",
            "{{ {'a': {'b': c[0]}}['a'] }}",
            "{{ unclosed[",
            "{% raw %}{{ [",
            "{",
        ] {
            assert_eq!(rewrite(&format!("{{{{ x.pop() }}}}{source}")), format!("{{{{ x.pop() }}}}{source}"));
        }
    }

    #[test]
    fn a_template_that_changes_no_list_is_left_alone() {
        assert_eq!(rewrite("{% set a = [] %}"), "{% set a = [] %}");
    }
}
