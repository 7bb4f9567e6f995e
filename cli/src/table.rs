//! Tables as kubectl prints them: columns, two spaces apart, no lines.

use comfy_table::{Table, TableStyle};
use jiff::Timestamp;
use serde_json::Value;

use crate::object::{Kind, condition, name, text};

/// The table of a kind.
pub(crate) fn of(kind: Kind, objects: &[Value], wide: bool, now: Timestamp) -> String {
    let (mut header, row): (Vec<&str>, fn(&Value, Timestamp) -> Vec<String>) = match kind {
        Kind::Deployment => {
            (vec!["NAME", "MODEL", "QUANT", "COPIES", "READY", "REDUNDANT", "COVER", "AGE"], deployment)
        }
        Kind::Host => (vec!["NAME", "READY", "SCHEDULABLE", "DEVICES", "MEMORY", "WORKLOADS", "AGE"], host),
    };
    if wide {
        header.push(if kind == Kind::Deployment { "HOSTS" } else { "ADDRESS" });
    }
    let rows = objects.iter().map(|object| {
        let mut cells = row(object, now);
        if wide {
            cells.push(match kind {
                Kind::Deployment => hosts(object),
                Kind::Host => or_dash(text(object, &["status", "address"])),
            });
        }
        cells
    });
    plain(&header, rows)
}

/// Any table.
pub(crate) fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

fn deployment(object: &Value, now: Timestamp) -> Vec<String> {
    let status = &object["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    vec![
        name(object).to_owned(),
        or_dash(text(object, &["spec", "model", "name"])),
        or_dash(text(object, &["spec", "quant"])),
        format!("{}/{}", number("readyCopies"), number("copies")),
        holds(object, "Ready"),
        holds(object, "Redundant"),
        or_dash(status["cover"].as_str().unwrap_or_default()),
        age(object, now),
    ]
}

fn host(object: &Value, now: Timestamp) -> Vec<String> {
    let status = &object["status"];
    let devices = status["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kinds: Vec<&str> = devices.iter().filter_map(|device| device["kind"].as_str()).collect();
    let bytes: u64 = devices.iter().filter_map(|device| device["memoryBytes"].as_u64()).sum();
    vec![
        name(object).to_owned(),
        holds(object, "Ready"),
        if object["spec"]["unschedulable"].as_bool() == Some(true) { "no".into() } else { "yes".into() },
        or_dash(&kinds.join(",")),
        if bytes == 0 { "-".into() } else { size(bytes) },
        status["workloads"].as_array().map_or(0, Vec::len).to_string(),
        age(object, now),
    ]
}

fn hosts(object: &Value) -> String {
    let placements = object["status"]["placements"].as_array().map(Vec::as_slice).unwrap_or_default();
    let hosts: Vec<&str> = placements.iter().filter_map(|placement| placement["host"].as_str()).collect();
    or_dash(&hosts.join(","))
}

fn holds(object: &Value, kind: &str) -> String {
    condition(object, kind).map_or_else(|| "-".to_owned(), |(status, ..)| or_dash(status))
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Bytes in binary units, as memory is sold and reported.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// How long ago an object was created.
pub(crate) fn age(object: &Value, now: Timestamp) -> String {
    text(object, &["metadata", "creationTimestamp"])
        .parse()
        .map_or_else(|_| "-".to_owned(), |then| since(then, now))
}

/// A time span in its two largest units at most, as kubectl does.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_one_aligned_line() {
        let object = json!({
            "metadata": {"name": "tiny-kimi", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"model": {"name": "tiny-kimi"}, "quant": "Q4_K_M"},
            "status": {"copies": 2, "readyCopies": 2, "cover": "Hot",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Redundant", "status": "True"}],
                "placements": [{"host": "a"}, {"host": "b"}]},
        });
        let now = "2026-01-01T00:03:00Z".parse().unwrap();
        assert_eq!(
            of(Kind::Deployment, &[object], true, now),
            "NAME       MODEL      QUANT   COPIES  READY  REDUNDANT  COVER  AGE  HOSTS\n\
             tiny-kimi  tiny-kimi  Q4_K_M  2/2     True   True       Hot    3m   a,b\n"
        );
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!([size(512), size(1536), size(384 << 30)], ["512 B", "1.5 KiB", "384.0 GiB"]);
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        assert_eq!(
            [since(at(0), at(119)), since(at(0), at(120)), since(at(0), at(200_000))],
            ["119s", "2m", "2d"]
        );
    }
}
