//! The `tojson` filter as chat templates expect it: Python's `json.dumps` with `ensure_ascii=False`, not
//! Jinja's own, which escapes for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

const MAX_DEPTH: usize = 128;

/// `value | tojson(indent=…, separators=(…, …), sort_keys=…, ensure_ascii=…)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(usize::try_from(indent)?.min(16)),
        _ => None,
    };
    let separators = options.get::<Option<Value>>("separators")?.filter(|value| !value.is_none());
    let (between_items, after_key) = match separators {
        Some(pair) => {
            let text = |index| {
                pair.get_item_by_index(index)
                    .ok()
                    .and_then(|text| text.as_str().map(str::to_owned))
                    .ok_or_else(|| {
                        Error::new(ErrorKind::InvalidOperation, "separators must be a pair of strings")
                    })
            };
            (text(0)?, text(1)?)
        }
        // With an indent, the line end follows the comma instead of a blank.
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let flag = |name| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    let mut writer = Writer {
        out: String::new(),
        indent,
        between_items,
        after_key,
        sort_keys: flag("sort_keys")?,
        ensure_ascii: flag("ensure_ascii")?,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer {
    out: String,
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refuse("a value nested deeper than 128 levels"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.display(value),
            ValueKind::Number => self.float(f64::try_from(value.clone())?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.container('[', ']', depth, &items, |writer, item| writer.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    let item = value.get_item(&key)?;
                    pairs.push((key, item));
                }
                if self.sort_keys {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container('{', '}', depth, &pairs, |writer, (key, item)| {
                    writer.key(key)?;
                    writer.out.push_str(&writer.after_key.clone());
                    writer.value(item, depth + 1)
                })?;
            }
            kind => return Err(refuse(&format!("a value of kind {kind}"))),
        }
        Ok(())
    }

    fn container<T>(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[T],
        mut each: impl FnMut(&mut Writer, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.out.push_str(&self.between_items);
            }
            self.line_end(depth + 1);
            each(self, item)?;
        }
        if !items.is_empty() {
            self.line_end(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line_end(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            kind => return Err(refuse(&format!("a key of kind {kind}"))),
        }
        Ok(())
    }

    fn display(&mut self, value: &Value) {
        write!(self.out, "{value}").expect("writing to a string does not fail");
    }

    /// Python writes the shortest digits, too, but its exponents have a sign and two digits.
    fn float(&mut self, number: f64) {
        if number.is_nan() {
            self.out.push_str("NaN");
        } else if number.is_infinite() {
            self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
        } else {
            let text = format!("{number:?}");
            match text.split_once('e') {
                None => self.out.push_str(&text),
                Some((digits, exponent)) => {
                    let (sign, exponent) = match exponent.strip_prefix('-') {
                        Some(exponent) => ('-', exponent),
                        None => ('+', exponent),
                    };
                    write!(self.out, "{digits}e{sign}{exponent:0>2}")
                        .expect("writing to a string does not fail");
                }
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                control if control < ' ' => self.escape(control),
                // Marks must stay what they are.
                wide if self.ensure_ascii && !wide.is_ascii() && !super::marks::may_be_mark(wide) => {
                    self.escape(wide)
                }
                plain => self.out.push(plain),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            write!(self.out, "\\u{unit:04x}").expect("writing to a string does not fail");
        }
    }
}

fn refuse(what: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("{what} can't be written as JSON"))
}
