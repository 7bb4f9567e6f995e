//! Tables as kubectl prints them: columns, two spaces apart, no lines.

use comfy_table::{ColumnConstraint, Table, TableStyle, Width};
use jiff::Timestamp;
use serde_json::Value;

use crate::object::{Kind, condition, items, name, text};
use crate::progress::Progress;
use crate::span::since;

/// The table of a kind; with a column of namespaces where there may be several.
pub(crate) fn of(kind: Kind, objects: &[Value], wide: bool, everywhere: bool, now: Timestamp) -> String {
    let moving = objects.iter().any(|object| progress(kind, object).is_some());
    let shown = Shown { kind, wide, everywhere, moving };
    Columns::default().lay(&shown.header(), objects.iter().map(|object| shown.row(object, now)))
}

/// Weights of an object that are on their way.
pub(crate) fn progress(kind: Kind, object: &Value) -> Option<Progress> {
    match kind {
        Kind::Deployment => Progress::of_deployment(object),
        Kind::Host => Progress::of_host(object),
    }
}

/// Which columns there are.
#[derive(Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) kind: Kind,
    pub(crate) wide: bool,
    /// Namespaces, where there may be several.
    pub(crate) everywhere: bool,
    /// Weights on their way, which a wide table has room for always.
    pub(crate) moving: bool,
}

impl Shown {
    /// The titles.
    pub(crate) fn header(self) -> Vec<&'static str> {
        let Self { kind, wide, everywhere, moving } = self;
        let mut titles = header(kind, wide, everywhere);
        titles.extend(["PROGRESS"].iter().filter(|_| wide || moving));
        titles
    }

    /// One object under those titles.
    pub(crate) fn row(self, object: &Value, now: Timestamp) -> Vec<String> {
        let Self { kind, wide, everywhere, moving } = self;
        let mut cells = row(kind, object, wide, everywhere, now);
        if wide || moving {
            cells.push(progress(kind, object).map_or_else(|| "-".to_owned(), |progress| progress.short()));
        }
        cells
    }
}

fn header(kind: Kind, wide: bool, everywhere: bool) -> Vec<&'static str> {
    let mut titles = Vec::new();
    if everywhere && kind.namespaced() {
        titles.push("NAMESPACE");
    }
    match kind {
        Kind::Deployment => {
            titles.extend(["NAME", "MODEL", "QUANT", "READY", "COVER", "REDUNDANT", "AGE"]);
            titles.extend(["HOSTS", "ENDPOINT"].iter().filter(|_| wide));
        }
        Kind::Host => {
            titles.extend(["NAME", "READY", "SCHEDULABLE", "DEVICES", "MEMORY", "WORKLOADS", "AGE"]);
            titles.extend(["ADDRESS", "VERSION", "TERM"].iter().filter(|_| wide));
        }
    }
    titles
}

fn row(kind: Kind, object: &Value, wide: bool, everywhere: bool, now: Timestamp) -> Vec<String> {
    let mut cells = Vec::new();
    if everywhere && kind.namespaced() {
        cells.push(or_dash(text(object, &["metadata", "namespace"])));
    }
    cells.push(name(object).to_owned());
    match kind {
        Kind::Deployment => deployment(object, wide, now, &mut cells),
        Kind::Host => host(object, wide, now, &mut cells),
    }
    cells
}

fn deployment(object: &Value, wide: bool, now: Timestamp, cells: &mut Vec<String>) {
    cells.extend([
        or_dash(text(object, &["spec", "model", "name"])),
        or_dash(text(object, &["spec", "quant"])),
        or_dash(text(object, &["status", "ready"])),
        or_dash(text(object, &["status", "cover"])),
        holds(object, "Redundant"),
        age(object, now),
    ]);
    if wide {
        let hosts: Vec<&str> = items(&object["status"], "placements")
            .iter()
            .map(|placement| text(placement, &["host"]))
            .collect();
        cells.extend([or_dash(&hosts.join(",")), or_dash(text(object, &["status", "endpoint"]))]);
    }
}

fn host(object: &Value, wide: bool, now: Timestamp, cells: &mut Vec<String>) {
    let status = &object["status"];
    let workloads = items(status, "workloads").iter().filter(|workload| workload["state"] != "Stopped");
    cells.extend([
        holds(object, "Ready"),
        schedulable(object).to_owned(),
        or_dash(&devices(items(status, "devices"))),
        status["memory"]["totalBytes"].as_u64().map_or_else(|| "-".to_owned(), size),
        workloads.count().to_string(),
        age(object, now),
    ]);
    if wide {
        let term = object["spec"]["term"].as_u64().unwrap_or_default();
        cells.extend([
            or_dash(text(object, &["status", "address"])),
            or_dash(text(object, &["status", "agentVersion"])),
            if term == 0 { "-".to_owned() } else { term.to_string() },
        ]);
    }
}

/// Whether a host takes new copies, and whether it is being emptied.
pub(crate) fn schedulable(host: &Value) -> &'static str {
    match (&host["spec"]["unschedulable"], &host["spec"]["drain"]) {
        (_, Value::String(_)) => "no, draining",
        (Value::Bool(true), _) => "no",
        _ => "yes",
    }
}

/// Kinds of device, counted: `CPU,8xCUDA`.
fn devices(devices: &[Value]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for device in devices {
        let kind = text(device, &["kind"]);
        match counted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => counted.push((kind, 1)),
        }
    }
    let text = |(kind, count): &(&str, usize)| match count {
        1 => (*kind).to_owned(),
        _ => format!("{count}x{kind}"),
    };
    counted.iter().map(text).collect::<Vec<_>>().join(",")
}

fn holds(object: &Value, kind: &str) -> String {
    condition(object, kind).map_or_else(|| "-".to_owned(), |(status, ..)| or_dash(status))
}

/// A text, or a dash for none.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Any table.
pub(crate) fn plain(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    Columns::default().lay(header, rows)
}

/// Widths of columns, so that rows which come later stand under those before.
#[derive(Default)]
pub(crate) struct Columns {
    widths: Vec<u16>,
}

impl Columns {
    /// Rows under a header, or where it is empty, rows alone; with a line end behind each.
    pub(crate) fn lay(&mut self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new());
        if !header.is_empty() {
            table.set_header(header.to_vec());
        }
        for row in rows {
            table.add_row(row);
        }
        let mut widths = table.column_max_content_widths();
        for (width, before) in widths.iter_mut().zip(&self.widths) {
            *width = (*width).max(*before);
        }
        for (column, width) in table.column_iter_mut().zip(&widths) {
            column.set_padding((0, 2));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width.saturating_add(2))));
        }
        self.widths = widths;
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T00:03:00Z".parse().unwrap()
    }

    #[test]
    fn a_deployment_is_one_aligned_line() {
        let object = json!({
            "metadata": {"name": "tiny-kimi", "namespace": "llm", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"model": {"name": "tiny-kimi"}, "quant": "Q4_K_M"},
            "status": {"copies": 2, "readyCopies": 2, "ready": "2/2", "cover": "Hot", "endpoint": "http://edge:8080",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Redundant", "status": "True"}],
                "placements": [{"host": "a"}, {"host": "b"}]},
        });
        assert_eq!(
            of(Kind::Deployment, &[object], true, true, now()),
            "NAMESPACE  NAME       MODEL      QUANT   READY  COVER  REDUNDANT  AGE  HOSTS  ENDPOINT          PROGRESS\n\
             llm        tiny-kimi  tiny-kimi  Q4_K_M  2/2    Hot    True       3m   a,b    http://edge:8080  -\n"
        );
    }

    #[test]
    fn a_host_counts_its_devices_and_what_has_not_ended() {
        let object = json!({
            "metadata": {"name": "dgx-1"},
            "spec": {"term": 3, "unschedulable": true, "drain": "Requested"},
            "status": {"address": "10.0.0.7", "memory": {"totalBytes": 2_u64 << 40},
                "devices": [{"kind": "CPU"}, {"kind": "CUDA"}, {"kind": "CUDA"}],
                "workloads": [{"state": "Ready"}, {"state": "Stopped"}]},
        });
        let text = of(Kind::Host, &[object], true, false, now());
        assert_eq!(
            text.lines().nth(1),
            Some(
                "dgx-1  -      no, draining  CPU,2xCUDA  2.0 TiB  1          -    10.0.0.7  -        3     -"
            )
        );
    }

    #[test]
    fn progress_has_a_column_while_something_is_on_its_way() {
        let still = json!({"metadata": {"name": "a"}, "status": {"workloads": [{"state": "Ready"}]}});
        let mut moves = still.clone();
        moves["status"]["workloads"][0]["transfer"] =
            json!({"doneBytes": 1, "totalBytes": 2, "bytesPerSecond": 1_000_000, "etaSeconds": 61});
        let table = of(Kind::Host, &[still.clone(), moves], false, true, now());
        let ends: Vec<&str> = table.lines().filter_map(|line| line.split("  ").last()).collect();
        assert_eq!(ends, ["PROGRESS", "-", "50% ████░░░░ 1.0 MB/s 1m01s"]);
        assert!(!of(Kind::Host, &[still], false, true, now()).contains("PROGRESS"));
    }

    #[test]
    fn later_rows_stand_under_earlier_ones() {
        let mut columns = Columns::default();
        let first = columns.lay(&["NAME", "READY"], [vec!["tiny-kimi".into(), "1/2".into()]]);
        assert_eq!(first, "NAME       READY\ntiny-kimi  1/2\n");
        assert_eq!(columns.lay(&[], [vec!["a".into(), "2/2".into()]]), "a          2/2\n");
        assert_eq!(columns.lay(&["NAME"], Vec::new()), "NAME\n");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([size(512), size(1536), size(384 << 30)], ["512 B", "1.5 KiB", "384.0 GiB"]);
    }
}
