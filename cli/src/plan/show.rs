//! Reports for people, in 100 columns.

use tandem_crds::DeviceKind;
use tandem_plan::capacity::{Exactness, LimitKind, OptionReport, Ready, Report, Speed};
use tandem_plan::human;

use crate::table;

const WIDTH: usize = 100;

/// A report as text.
pub(crate) fn report(report: &Report, refused_by_apply: Option<&str>) -> String {
    let mut text = head(report);
    for limit in &report.limits {
        text += &wrapped("", &format!("No host runs it yet: {}.", limit.sentence));
    }
    if let Some(refused) = refused_by_apply {
        text += &wrapped("", refused);
    }
    if report.need.is_none() {
        return text;
    }
    text.push('\n');
    let rows = report.fleets.iter().flat_map(|fleet| {
        fleet.options.iter().enumerate().map(|(index, option)| {
            let name = if index == 0 { fleet.fleet.clone() } else { String::new() };
            row(name, option)
        })
    });
    text += &table::plain(&["FLEET", "ON", "ROOM", "COPY", "FITS", "COVER", "TOKENS/S", "READY IN"], rows);
    for fleet in &report.fleets {
        let lines: Vec<String> = fleet.options.iter().flat_map(details).collect();
        if !lines.is_empty() {
            text += &format!("\n{}\n", fleet.fleet);
            lines.iter().for_each(|line| text += &wrapped("  ", line));
        }
    }
    text
}

fn head(report: &Report) -> String {
    let failures = match report.host_failures {
        0 => "no host failure covered".to_owned(),
        1 => "through one lost host".to_owned(),
        more => format!("through {more} lost hosts"),
    };
    let replicas =
        if report.replicas == 1 { "1 replica".to_owned() } else { format!("{} replicas", report.replicas) };
    let mut text = wrapped(
        "",
        &format!(
            "{}: {} {}, {} tokens of context, {} in the pool, {replicas} {failures}",
            report.deployment, report.model, report.quant, report.context_tokens, report.pool_tokens
        ),
    );
    if let Some(need) = &report.need {
        text += &wrapped(
            "",
            &format!(
                "One copy: {} of weights + {} of cache + {} of working memory = {} ({} bytes), {} from {}",
                human(need.weights_bytes),
                human(need.kv_bytes),
                human(need.arena_bytes),
                human(need.total_bytes),
                need.total_bytes,
                exactness(need.exactness),
                report.known_from
            ),
        );
    }
    text
}

pub(crate) fn exactness(exactness: Exactness) -> &'static str {
    match exactness {
        Exactness::Exact => "exact",
        Exactness::Estimated => "estimated",
    }
}

/// What people call a kind of device.
pub(crate) fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU",
        DeviceKind::Cuda => "CUDA",
        DeviceKind::Metal => "Metal",
    }
}

fn row(fleet: String, option: &OptionReport) -> Vec<String> {
    let fits = match (option.fits, option.runs) {
        (true, true) => "yes",
        (true, false) => "not yet",
        (false, _) => "no",
    };
    let on = if option.devices == 1 {
        kind(option.device).to_owned()
    } else {
        format!("{}x{}", option.devices, kind(option.device))
    };
    vec![
        fleet,
        on,
        human(option.room_bytes),
        exactness(option.exactness).to_owned(),
        fits.to_owned(),
        option.cover.clone(),
        option.tokens_per_second.as_ref().map_or_else(|| "-".to_owned(), speed),
        option.ready.as_ref().map_or_else(|| "-".to_owned(), ready),
    ]
}

fn speed(speed: &Speed) -> String {
    format!("{:.0}-{:.0} estimated", speed.at_least, speed.at_most)
}

fn ready(ready: &Ready) -> String {
    span(ready.download_seconds + ready.load_seconds)
}

/// In one unit that still tells something.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{:.1} h", seconds as f64 / 3_600.0),
    }
}

/// What the table has no room for. What no host in this release can do is said once, above it.
fn details(option: &OptionReport) -> Vec<String> {
    let of_all =
        |limit: LimitKind| matches!(limit, LimitKind::TypeNotSupported | LimitKind::ArchitectureNotSupported);
    let on = kind(option.device);
    let mut sentences: Vec<String> = option
        .limits
        .iter()
        .filter(|limit| !of_all(limit.limit))
        .map(|limit| limit.sentence.clone())
        .collect();
    sentences.extend(option.offers.iter().map(|offer| offer.sentence.clone()));
    sentences.extend(option.tokens_per_second.iter().filter_map(|speed| speed.measured.clone()));
    if let Some(ready) = &option.ready {
        let download = if ready.download_seconds == 0 {
            String::new()
        } else {
            format!(
                "{} of download at {} Mbit/s and ",
                span(ready.download_seconds),
                ready.download_bytes_per_second / 125_000
            )
        };
        sentences.push(format!(
            "ready after {download}{} of reading at {} MB/s",
            span(ready.load_seconds),
            ready.disk_bytes_per_second / 1_000_000
        ));
    }
    if sentences.is_empty() { Vec::new() } else { vec![format!("{on}: {}.", sentences.join("; "))] }
}

/// Notes as a list.
pub(crate) fn notes(notes: &[String]) -> String {
    let mut text = "\nNotes\n".to_owned();
    notes.iter().for_each(|note| text += &wrapped("  ", note));
    text
}

/// Lines of at most [`WIDTH`] columns, all but the first two columns further in.
pub(crate) fn wrapped(indent: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = indent.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &line;
            lines.push('\n');
            line = format!("{indent}  ");
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_no_longer_than_the_width() {
        let text = wrapped("  ", &"four ".repeat(60));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("    four")));
        assert_eq!(wrapped("", "short"), "short\n");
    }

    #[test]
    fn spans_are_short() {
        assert_eq!([span(59), span(125), span(7_300)], ["59 s", "3 min", "2.0 h"]);
    }
}
